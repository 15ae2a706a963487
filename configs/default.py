"""Every field of a run and its default. Each config starts from here and says what it changes."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "untitled"
    c.steps = 100
    c.seed = 0  # of initialisation and batches, where members.seed is empty

    # Members of one vmapped program: every seed with every learning rate. Empty: the one value of seed, optimizer.
    c.members = ConfigDict()
    c.members.seed = ()
    c.members.lr_relative = ()
    c.members.lr = ()

    c.data = ConfigDict()
    c.data.name = "natural_patches"  # digits, natural_patches, synthetic, NAME of an .npz file or of a TFDS data set
    c.data.dir = placeholder(str)  # folder with NAME.npz; empty: $CATAPULT_DATA_DIR
    c.data.tfds_dir = placeholder(str)  # empty: TFDS's own
    c.data.download = False  # let TFDS download and prepare
    c.data.stand_in = ""  # embedded data set to run on, under its own name, where data.name can't be had; empty: none
    c.data.stand_in_classes = ()
    c.data.strict = False  # no stand-in: an error
    c.data.classes = ()  # empty: all
    c.data.train_size = 128
    c.data.test_size = 0  # 0: all
    c.data.scaling = "sqrt_d"  # each image to norm sqrt(d); standardize; none
    c.data.coding = "sign"  # -1, +1; one_hot; integer; binary 0, 1; value
    c.data.synthetic = ConfigDict()  # for data.name = synthetic
    c.data.synthetic.dimension = 20
    c.data.synthetic.rank = 2  # y = x_1 ... x_rank
    c.data.synthetic.noise = 0.0  # standard deviation, training targets only
    c.data.synthetic.seed = 0

    c.model = ConfigDict()
    c.model.name = "fcn"  # or cnn
    c.model.depth = 5  # weight layers
    c.model.width = 1024  # units or channels
    c.model.activation = "relu"
    c.model.gain = 1.0
    c.model.bias = False
    c.model.readout = "flatten"  # cnn: or average
    c.model.strides = ()  # cnn: of each convolution; empty: one

    c.loss = "mse"  # softmax_cross_entropy, logistic

    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd"
    c.optimizer.lr = 0.0  # absolute; 0: not given. Absolute or relative rates are given, not both
    c.optimizer.lr_relative = 0.0  # multiple of the critical lr at initialisation; 0: not given
    c.optimizer.batch_size = 0  # 0: all training examples

    c.schedule = ConfigDict()
    c.schedule.name = "constant"  # or staircase: raise the lr again when the loss has settled
    c.schedule.raises = 2
    c.schedule.raise_to = 1.67  # multiple of the critical lr of that moment
    c.schedule.settle_fraction = 0.6
    c.schedule.settle_steps = 20

    # Cadence of each instrument in steps; 0: off.
    c.measure = ConfigDict()
    c.measure.batch_kernel_every = 1
    c.measure.top_k = 5
    c.measure.train_loss_every = 1  # with all examples in a batch it is the batch loss and costs nothing
    c.measure.train_kernel_every = 0
    c.measure.loss_after_every = 0
    c.measure.test_every = 0
    c.measure.probe_size = 0  # examples of train_kernel and of the critical lr at initialisation; 0: all

    c.events = ConfigDict()
    c.events.factor = 1.5  # of the events that are listed; counts are always given on a grid of factors
    c.events.delta = 0.1
    c.events.horizon = 1000

    c.run = ConfigDict()
    c.run.chunk_steps = 10  # steps between two visits of the host
    c.run.checkpoint_every = 50  # steps; one more at the end

    c.claims = ()  # verdicts of the report, see experiments/claims.py
    c.published_critical_lr = placeholder(float)  # printed beside ours
    return c.lock()  # a misspelt field in a config is an error
