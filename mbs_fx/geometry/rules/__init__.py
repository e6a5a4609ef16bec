"""One file of geometry rules for each kind of operation; importing this attaches them all."""

from mbs_fx.geometry.rules import contractions as contractions
from mbs_fx.geometry.rules import factories as factories
from mbs_fx.geometry.rules import layout as layout
from mbs_fx.geometry.rules import windows as windows
