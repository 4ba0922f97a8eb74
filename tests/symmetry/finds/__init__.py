"""Small modules in which a symmetry is easily read wrongly off the operations: one trap each."""

from tests.symmetry.finds import operations as operations
from tests.symmetry.finds import proof as proof
from tests.symmetry.finds import units as units
from tests.symmetry.finds.base import DO_NOT_RUN as DO_NOT_RUN
from tests.symmetry.finds.base import FINDS as FINDS
from tests.symmetry.finds.base import SHOW_NOTHING as SHOW_NOTHING
from tests.symmetry.finds.base import TRAINING_ONLY as TRAINING_ONLY
from tests.symmetry.finds.base import Build as Build
