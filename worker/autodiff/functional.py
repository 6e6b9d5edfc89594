"""Every operation, under PyTorch's name: `from worker.autodiff import functional as F`.

Each family of operations lists its own names; a new operation needs no line here.
"""

from __future__ import annotations

import worker.autodiff.graph  # noqa: F401  # before all operations: it and tensor import each other
from worker.autodiff.activations import *
from worker.autodiff.arithmetic import *
from worker.autodiff.attention import *
from worker.autodiff.batch_norm import *
from worker.autodiff.comparison import *
from worker.autodiff.convolution import *
from worker.autodiff.creation import *
from worker.autodiff.diagonals import *
from worker.autodiff.distances import *
from worker.autodiff.dropout import *
from worker.autodiff.einsum import *
from worker.autodiff.elementwise import *
from worker.autodiff.embedding import *
from worker.autodiff.extrema import *
from worker.autodiff.indexing import *
from worker.autodiff.joining import *
from worker.autodiff.linalg import *
from worker.autodiff.losses import *
from worker.autodiff.losses_classification import *
from worker.autodiff.losses_embedding import *
from worker.autodiff.losses_regression import *
from worker.autodiff.normalization import *
from worker.autodiff.padding import *
from worker.autodiff.pooling import *
from worker.autodiff.reductions import *
from worker.autodiff.resampling import *
from worker.autodiff.scattering import *
from worker.autodiff.shape import *
from worker.autodiff.softmax import *
