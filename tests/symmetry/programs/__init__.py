"""Random programs that nobody would write, over tensors of any shape: what a network might compute."""

# In this order: a seed chooses among the steps by their position.
from tests.symmetry.programs import values as values  # isort: skip
from tests.symmetry.programs import shapes as shapes  # isort: skip
from tests.symmetry.programs import layers as layers  # isort: skip
from tests.symmetry.programs import further as further  # isort: skip
from tests.symmetry.programs import functions as functions  # isort: skip
from tests.symmetry.programs import moves as moves  # isort: skip
from tests.symmetry.programs import fields as fields  # isort: skip
from tests.symmetry.programs import sequences as sequences  # isort: skip
from tests.symmetry.programs import counts as counts  # isort: skip
from tests.symmetry.programs.base import Program as Program
from tests.symmetry.programs.base import refused as refused
from tests.symmetry.programs.base import run as run
from tests.symmetry.programs.base import settled as settled
from tests.symmetry.programs.base import shows as shows
