"""Every field of a run and its default. Each config starts from here and says what it changes."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "untitled"  # of the report
    c.steps = 100  # of the run
    c.seed = 0  # of initialisation and batches, where members.seed is None

    # None: not given. On the command line: --config.FIELD=None.
    # Members of one vmapped program: every seed with every lr. None: the single value of seed, optimizer, schedule.
    c.members = ConfigDict()
    c.members.seed = placeholder(tuple)  # replaces seed
    c.members.lr = placeholder(tuple)  # replaces optimizer.lr, in the same unit
    c.members.raises = placeholder(tuple)  # replaces schedule.raises
    c.members.cap = placeholder(tuple)  # replaces schedule.cap; None as an item: a member without a cap

    c.data = ConfigDict()
    c.data.name = "natural_patches"  # digits, natural_patches, synthetic, NAME of an .npz file or of a TFDS data set
    c.data.dir = placeholder(str)  # folder with NAME.npz; None: $CATAPULT_DATA_DIR
    c.data.tfds_dir = placeholder(str)  # None: TFDS's own
    c.data.download = False  # let TFDS download and prepare
    c.data.fallback = placeholder(str)  # embedded data set to run on, under its own name, where data.name is not available
    c.data.fallback_classes = placeholder(tuple)  # replaces data.classes, with that data set
    c.data.strict = False  # no fallback data: an error
    c.data.classes = placeholder(tuple)  # None: all
    c.data.train_size = 128  # training examples
    c.data.test_size = placeholder(int)  # test examples; None: all
    c.data.validation_size = 0  # from the training split, beside the training examples
    c.data.attribute = placeholder(str)  # of a data set that has attributes for labels (celeba)
    c.data.image_size = placeholder(int)  # centre crop and resize to so many pixels a side; None: as they are
    c.data.scaling = "sqrt_d"  # each image to norm sqrt(d); standardize; none
    c.data.target_encoding = "sign"  # -1, +1; one_hot; integer; binary 0, 1; value
    c.data.synthetic = ConfigDict()  # for data.name = synthetic
    c.data.synthetic.dimension = 20  # of an input
    c.data.synthetic.target = "product"  # x_1 ... x_rank; pairs x_1 x_2 + x_3 x_4 + ...; squares x_1^2 + ... + x_rank^2
    c.data.synthetic.rank = 2  # number of coordinates that the target depends on
    c.data.synthetic.noise = 0.0  # standard deviation, not on test targets
    c.data.synthetic.seed = 0  # of inputs and noise

    c.model = ConfigDict()
    c.model.name = "fcn"  # cnn, wide_resnet, vit
    c.model.depth = 5  # weight layers; wide_resnet: 6 n + 4; vit: blocks
    c.model.width = 1024  # units or channels
    c.model.activation = "relu"  # of every hidden layer
    c.model.gain = 1.0  # factor of every hidden layer; sqrt(2) is He scaling for relu
    c.model.bias = False  # whether layers have a bias
    c.model.readout = "flatten"  # cnn: or average
    c.model.strides = placeholder(tuple)  # cnn: of each convolution; None: one
    c.model.stem_stride = 1  # wide_resnet
    c.model.patch_size = 8  # vit

    c.loss = "mse"  # softmax_cross_entropy, logistic

    # Settings from b1 on have Optax's names and belong to single optimizers. None: Optax's default.
    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd"  # heavy_ball, nesterov (sgd with momentum 0.9), adagrad, rmsprop, adam, adamw, adadelta
    c.optimizer.lr = placeholder(float)  # in the unit below; required here or in members.lr
    c.optimizer.lr_unit = "absolute"  # absolute; critical_lr0: multiples of the critical lr at initialisation
    c.optimizer.batch_size = placeholder(int)  # None: all training examples
    c.optimizer.momentum = 0.0  # sgd: heavy ball
    c.optimizer.nesterov = False  # sgd: with momentum
    c.optimizer.b1 = placeholder(float)  # adam, adamw: of the average of gradients
    c.optimizer.b2 = placeholder(float)  # adam, adamw: of the average of squares
    c.optimizer.eps = placeholder(float)  # of every optimizer with a preconditioner
    c.optimizer.initial_accumulator_value = placeholder(float)  # adagrad
    c.optimizer.decay = placeholder(float)  # rmsprop: of the average of squares
    c.optimizer.rho = placeholder(float)  # adadelta
    c.optimizer.weight_decay = placeholder(float)  # adamw

    c.schedule = ConfigDict()
    # warm_up, cyclic, exponential_cyclic; staircase: raise the lr when the loss has settled; relative_to_critical: hold it at
    # optimizer.lr times the critical lr of each step
    c.schedule.name = "constant"
    c.schedule.cap = placeholder(float)  # multiple of the critical lr of the step that the lr does not exceed; None: no cap
    c.schedule.cap_from = 0  # first step with the cap
    c.schedule.low = 0.1  # cycles and warm-up: where they begin, as a fraction of the peak
    c.schedule.period = 50  # cycles and warm-up: steps
    c.schedule.decay = 0.999  # exponential_cyclic: of the height of the cycles, in a step
    c.schedule.raises = 2  # staircase: number of raises
    c.schedule.raise_to = 1.67  # staircase: multiple of the critical lr of that moment
    c.schedule.settle_fraction = 0.6  # staircase: the loss has settled below this fraction of what it was after the last raise
    c.schedule.settle_steps = 20  # staircase: fewest steps between two raises

    # Fields that end in _every are the cadence of an instrument in steps; 0: off. A preset sets them.
    c.measure = ConfigDict()
    # economy, standard, full: what is measured, at cadences found from its cost in the first steps
    c.measure.preset = placeholder(str)
    c.measure.max_overhead = 1.5  # with a preset: a measured step over a bare one
    # How eigenvalues are computed: exact, from the kernel; matrix_free, from kernel-vector products; auto, the cheaper one in the
    # first steps. None: exact, and with a preset auto.
    c.measure.method = placeholder(str)
    c.measure.tolerance = 0.01  # matrix_free: relative error allowed to an eigenvalue
    # matrix_free: products in one step; None: top_k + 32, or 2 where they are unrolled (convolutions on the CPU)
    c.measure.max_products = placeholder(int)
    # examples of a kernel that are computed at a time, which bounds its memory (with convolutions on the CPU: up to eight chunks; with more, only the memory of its products); None: all
    c.measure.chunk_size = placeholder(int)
    c.measure.lambda_max_batch_every = 1  # top eigenvalues of the kernel of the batch, and the critical lr
    c.measure.top_k = 5  # eigenvalues of a kernel that are measured
    # matrix_free: follow every eigenvalue near or above the one that makes the lr critical, up to so many; None: top_k
    c.measure.top_k_max = placeholder(int)
    c.measure.loss_train_every = 1  # loss of all training examples; costs nothing if they are the batch
    c.measure.lambda_max_train_every = 0  # top eigenvalues of the kernel of the training set
    c.measure.loss_batch_after_every = 0  # loss of the batch after the step
    c.measure.preconditioner_min_every = 0  # smallest entry of the preconditioner, and the bound on the critical lr from it
    c.measure.loss_test_every = 0  # loss and error on test data, and on validation data if there are any
    c.measure.agop_alignment_every = 0  # average gradient outer product, and its alignment with the reference
    c.measure.agop_size = 256  # first training examples on which AGOPs are taken
    # closed_form (synthetic targets), or the model.npz of a run with run.save_model
    c.measure.agop_reference = placeholder(str)
    c.measure.probe_size = placeholder(int)  # examples of lambda_max_train and of the critical lr at initialisation; None: all

    c.events = ConfigDict()
    c.events.factor = 1.5  # of the events that are listed; counts are always given on a grid of factors
    c.events.delta = 0.1  # a spike has returned once the loss is at most 1 + delta times its level
    c.events.horizon = 1000  # steps; a member whose spike has not closed by then diverged, and is frozen

    c.run = ConfigDict()
    c.run.chunk_steps = 10  # steps between two visits of the host
    c.run.checkpoint_seconds = 30.0  # between two checkpoints; one more at the end, and where the run is stopped by a signal
    c.run.checkpoint_every = placeholder(int)  # steps instead, up to the end of a chunk
    # a member stops once its training loss is at most this; the run ends when all have stopped or diverged; None: never
    c.run.stop_loss = placeholder(float)
    c.run.save_model = False  # writes model.npz at the end: the first member's parameters, and what they are

    c.sweep = ()  # grid of experiments.sweep where none is given: "FIELD=v1,v2"
    c.claims = ()  # verdicts of the report, see experiments/verdicts/
    c.published_critical_lr = placeholder(float)  # printed beside ours
    return c.lock()  # a misspelt field in a config is an error
