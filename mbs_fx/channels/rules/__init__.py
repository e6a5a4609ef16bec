"""Rules of the label pass, one file for each kind of operation; importing this attaches them all.

A rule takes a `mbs_fx.channels.call.ChannelCall` and returns labels, or a `mbs_fx.channels.records.LabelResult` where
there is more to say.  docs/rules.md shows how to add one.
"""

from mbs_fx.channels.rules import contractions as contractions
from mbs_fx.channels.rules import elementwise as elementwise
from mbs_fx.channels.rules import layout as layout
from mbs_fx.channels.rules import modules as modules
from mbs_fx.channels.rules import normalisation as normalisation
from mbs_fx.channels.rules import onnx as onnx
from mbs_fx.channels.rules import padding as padding
from mbs_fx.channels.rules import slicing as slicing
