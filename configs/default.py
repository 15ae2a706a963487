"""Every field of a run, with its default. Each config starts from here and changes some fields."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "untitled"  # of the report
    c.steps = 100  # of the run
    c.seed = 0  # of initialisation and batches, where members.seed is None

    # None means not given. On the command line: --config.FIELD=None.

    # Members of one vmapped program: every seed with every lr. None: the single value of seed, optimizer, schedule.
    c.members = ConfigDict()
    c.members.seed = placeholder(tuple)  # replaces seed
    c.members.lr = placeholder(tuple)  # replaces optimizer.lr, in the same unit
    c.members.raises = placeholder(tuple)  # replaces schedule.raises
    # arms of a causal test: none, cap, remove_overshoot, placebo, low_bulk, shuffled_cap, mean_cap, force, sham
    c.members.intervention = placeholder(tuple)
    c.members.cap = placeholder(tuple)  # replaces schedule.cap; None as an item: a member without a cap

    c.data = ConfigDict()
    c.data.name = "natural_patches"  # digits, natural_patches, synthetic, or the name of an .npz file or of a TFDS data set
    c.data.dir = placeholder(str)  # folder with NAME.npz; None: $CATAPULT_DATA_DIR
    c.data.tfds_dir = placeholder(str)  # None: TFDS's own
    c.data.download = False  # let TFDS download and prepare
    c.data.fallback = placeholder(str)  # embedded data set that is used if data.name is not available
    c.data.fallback_classes = placeholder(tuple)  # replaces data.classes with fallback data
    c.data.strict = False  # True: an error in place of fallback data
    c.data.classes = placeholder(tuple)  # None: all
    c.data.train_size = 128  # training examples
    c.data.test_size = placeholder(int)  # test examples; None: all
    c.data.validation_size = 0  # validation examples; from the training split, none of them a training example
    c.data.attribute = placeholder(str)  # celeba: name of the attribute that is the label
    c.data.image_size = placeholder(int)  # crop to the centre and resize to this width and height; None: unchanged
    # True: each member's seed draws its own training and validation examples, without replacement from the training split; with synthetic
    # targets its own inputs and noise, test examples included
    c.data.by_seed = False
    c.data.scaling = "sqrt_d"  # each image to norm sqrt(d); standardize; none
    c.data.target_encoding = "sign"  # -1, +1; one_hot; integer; binary 0, 1; value
    c.data.synthetic = ConfigDict()  # for data.name = synthetic
    c.data.synthetic.dimension = 20  # of an input
    c.data.synthetic.target = "product"  # x_1 ... x_rank; pairs x_1 x_2 + x_3 x_4 + ...; squares x_1^2 + ... + x_rank^2
    c.data.synthetic.rank = 2  # number of coordinates that the target depends on
    c.data.synthetic.noise = 0.0  # standard deviation, not on test targets
    c.data.synthetic.seed = 0  # of inputs and noise

    c.model = ConfigDict()
    c.model.name = "fcn"  # fcn, cnn, wide_resnet, vit
    c.model.depth = 5  # weight layers; wide_resnet: 6 n + 4; vit: blocks
    c.model.width = 1024  # hidden units or channels
    c.model.activation = "relu"  # of every hidden layer
    c.model.gain = 1.0  # factor of every hidden layer; sqrt(2): He scaling for relu
    c.model.bias = False  # whether layers have a bias
    c.model.readout = "flatten"  # cnn: flatten or average
    c.model.strides = placeholder(tuple)  # cnn: of each convolution; None: 1
    c.model.stem_stride = 1  # wide_resnet: stride of the first convolution
    c.model.patch_size = 8  # vit: width and height of a patch in pixels

    c.loss = "mse"  # mse, softmax_cross_entropy, logistic

    # Settings from b1 on have Optax's names, and only some optimizers have them. None: Optax's default.
    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd"  # sgd, heavy_ball and nesterov (sgd with momentum 0.9), adagrad, rmsprop, adam, adamw, adadelta
    c.optimizer.lr = placeholder(float)  # in the unit optimizer.lr_unit; required here or in members.lr
    c.optimizer.lr_unit = "absolute"  # absolute; critical_lr0: multiples of the critical lr at initialisation
    c.optimizer.batch_size = placeholder(int)  # None: all training examples
    c.optimizer.momentum = 0.0  # sgd: momentum of heavy ball or Nesterov
    c.optimizer.nesterov = False  # sgd: momentum in Nesterov's form
    c.optimizer.b1 = placeholder(float)  # adam, adamw: decay of the average of gradients
    c.optimizer.b2 = placeholder(float)  # adam, adamw: decay of the average of squares
    c.optimizer.eps = placeholder(float)  # every optimizer with a preconditioner
    c.optimizer.initial_accumulator_value = placeholder(float)  # adagrad: initial sum of squares
    c.optimizer.decay = placeholder(float)  # rmsprop: decay of the average of squares
    c.optimizer.rho = placeholder(float)  # adadelta: decay of both averages
    c.optimizer.weight_decay = placeholder(float)  # adamw: decoupled weight decay

    c.schedule = ConfigDict()
    # constant, warm_up, decay, cyclic, exponential_cyclic; staircase: raise the lr when the loss has settled; relative_to_critical: keep it
    # at optimizer.lr times the critical lr of each step
    c.schedule.name = "constant"
    c.schedule.cap = placeholder(float)  # the lr stays at or below this multiple of the critical lr of the step; None: no cap
    c.schedule.cap_from = 0  # first step with the cap
    c.schedule.low = 0.1  # cycles and warm-up: lr at their beginning; decay: lr at its end; as a fraction of the peak
    c.schedule.period = 50  # cycles, warm-up and decay: length in steps
    c.schedule.decay_from = 0  # decay: step at which the lr begins to fall
    c.schedule.decay = 0.999  # exponential_cyclic: factor of the height of the cycles in a step
    c.schedule.raises = 2  # staircase: number of raises
    c.schedule.raise_to = 1.67  # staircase: multiple of the critical lr of that step
    c.schedule.settle_fraction = 0.6  # staircase: the loss has settled below this fraction of the loss after the last raise
    c.schedule.settle_steps = 20  # staircase: fewest steps between two raises

    # With members.intervention: schedule.cap is the cap of the arm cap only, and schedule.cap_from is the first step of every arm.
    c.intervention = ConfigDict()
    # directory of a run with the arm cap and these seeds; shuffled_cap, mean_cap and low_bulk take its lr
    c.intervention.cap_run = placeholder(str)
    # force: the critical modes come out so many times as large; sham: a kick of the same norm in the other modes
    c.intervention.dose = 1.5
    c.intervention.ratio = 1.0  # force, sham: a mode is critical where it would be at so many times the lr

    # Fields that end in _every are the cadence of an instrument in steps; 0: off. A preset sets them.
    c.measure = ConfigDict()
    # economy, standard, full: sets of instruments; the cadences come from their costs in the first steps
    c.measure.preset = placeholder(str)
    c.measure.max_overhead = 1.5  # with a preset: cost of a measured step over that of a bare step
    # Method for eigenvalues: exact, from the kernel; matrix_free, from kernel-vector products; auto, the cheaper of the two in the
    # first steps. None: exact; with a preset auto.
    c.measure.method = placeholder(str)
    c.measure.tolerance = 0.01  # matrix_free: largest relative error of an eigenvalue
    # matrix_free: products in one step; None: top_k + 32, or 2 where they are unrolled (convolutions on the CPU)
    c.measure.max_products = placeholder(int)
    # Examples of a kernel that are computed at a time, to bound its memory; None: all. Convolutions on the CPU: beyond eight chunks
    # only the memory of the products is bounded.
    c.measure.chunk_size = placeholder(int)
    c.measure.lambda_max_batch_every = 1  # top eigenvalues of the kernel of the batch, and the critical lr
    c.measure.top_k = 5  # number of eigenvalues of a kernel
    # matrix_free: follow every eigenvalue near or above the one that makes the lr critical, at most so many; None: top_k
    c.measure.top_k_max = placeholder(int)
    # exact method: write the loss in each of so many top eigenvectors of the kernel of the training set, with lambda_max_train, or with
    # lambda_max_batch where all examples are the batch; 0: none
    c.measure.loss_modes = 0
    c.measure.loss_train_every = 1  # loss of all training examples; free if they are the batch
    c.measure.lambda_max_train_every = 0  # top eigenvalues of the kernel of the training set
    c.measure.loss_batch_after_every = 0  # loss of the batch after the step
    c.measure.directional_batch_every = 0  # multiple of this step's update at which the loss of the batch stops falling
    c.measure.directional_train_every = 0  # the same on all training examples, and their predicted loss after the step
    # every criterion for spikes of docs/predictors.md: for comparisons, costs many passes
    c.measure.criteria_every = 0
    c.measure.preconditioner_min_every = 0  # smallest entry of the preconditioner, and the bound on the critical lr from it
    c.measure.weight_norm_every = 0  # Euclidean norm of all parameters
    c.measure.loss_test_every = 0  # loss and error on test data, and on validation data if there are some
    c.measure.agop_alignment_every = 0  # average gradient outer product, and its alignment with the reference
    c.measure.agop_size = 256  # AGOPs are taken on so many training examples, the first ones
    # closed_form (synthetic targets), or the model.npz of a run with run.save_model
    c.measure.agop_reference = placeholder(str)
    # the model.npz of a second reference, which differs from the first in its seed only: the alignment of the two is the ceiling in run.json
    c.measure.agop_second_reference = placeholder(str)
    c.measure.probe_size = placeholder(int)  # examples for lambda_max_train and for critical_lr0; None: all

    c.events = ConfigDict()
    c.events.factor = 1.5  # a listed spike rises above this multiple of its level; counts are always on a grid of factors
    c.events.delta = 0.1  # a spike has returned once the loss is at most 1 + delta times its level
    c.events.horizon = 1000  # steps; a member whose spike is open for longer has diverged, and stops

    c.run = ConfigDict()
    c.run.chunk_steps = 10  # steps between two returns to the host
    c.run.checkpoint_seconds = 30.0  # between two checkpoints; another one comes at the end, or when a signal stops the run
    c.run.checkpoint_every = placeholder(int)  # the same in steps, rounded up to a whole chunk; replaces the seconds
    # a member stops once its raises are made, no spike is open and its training loss is at most this; the run ends when all have stopped or diverged; None: never
    c.run.stop_loss = placeholder(float)
    c.run.float64 = False  # data, parameters and every measurement in double precision; needs a CPU or GPU
    c.run.save_model = False  # write model.npz at the end: parameters of the first member, config and test scores

    c.sweep = ()  # default grid of experiments.sweep: "FIELD=v1,v2"
    c.claims = ()  # claims that the report tests, see experiments/verdicts/
    c.published_critical_lr = placeholder(float)  # printed beside the measured one
    return c.lock()  # a misspelt field in a config is an error
