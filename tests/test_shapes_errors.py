"""What does not fit is one MBSError that names the place, the shapes, and what to do."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx import symbolic_trace

from mbs_fx.errors import MBSError, SizedByValuesError
from mbs_fx.shapes.shapes import infer


class Two(nn.Module):
    def forward(self, x, y, z=2):
        return F.relu(x) + y * z


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([(1, 2)], r"needs 2 inputs \(x, y\) and got 1"),
        ([(1, 2)] * 4, "takes 3 inputs and got 4"),
        ([(1, 2), 3], r"input 1 is 3: give a tensor, or its shape"),
        ([(1, 2), (0, 2)], r"input 1 is \(0, 2\)"),
        ([(1, 2), (1, 3)], r"node add, call_function add.* \(relu \(1, 2\), mul \(1, 3\)\)"),
    ],
)
def test_inputs_that_do_not_fit(inputs, words):
    with pytest.raises(MBSError, match=words):
        infer(symbolic_trace(Two()), inputs)


def test_placeholder_with_a_default():
    assert infer(symbolic_trace(Two()), [(1, 2), (1, 2)])["z"] == 2


def test_errors_name_the_place_and_what_to_do():
    with torch.device("meta"):
        vgg = symbolic_trace(torchvision.models.vgg11_bn().eval())
    with pytest.raises(MBSError, match=r"features_28.*features\.28 \(MaxPool2d\).*1, 512, 1, 1.*give a larger one"):
        infer(vgg, [(1, 3, 16, 16)])
    with pytest.raises(MBSError, match=r"node features_0, call_module features\.0 \(Conv2d\).*\(x \(1, 4, 64, 64\)\)"):
        infer(vgg, [(1, 4, 64, 64)])
    with pytest.raises(MBSError, match="dtype of the weights"):
        infer(vgg, [torch.zeros(1, 3, 64, 64, dtype=torch.float64)])


def test_errors_of_batch_norm():
    gm = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(MBSError, match="two images or more, or put the model in eval mode"):
        infer(gm, [(1, 3, 3, 3)])
    assert infer(gm, [(2, 3, 3, 3)])["output"].shape == (2, 4, 1, 1)
    gm.set_submodule("1", nn.BatchNorm2d(5))
    with pytest.raises(MBSError, match=r"node _1, call_module 1 \(BatchNorm2d\)"):
        infer(gm, [(2, 3, 9, 9)])


def test_what_depends_on_values_is_said():
    class Masked(nn.Module):
        def forward(self, x):
            return x[x > 0]

    with pytest.raises(SizedByValuesError, match="depends on values"):
        infer(symbolic_trace(Masked()), [(2, 3)])


class Waves(nn.Module):
    """``istft`` looks whether its window leaves gaps, and its shape follows from those of its arguments."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x):
        z = torch.view_as_real(torch.stft(x, 16, 8, window=self.window, return_complex=True))
        z = torch.view_as_complex(self.conv(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous())
        return torch.istft(z, 16, 8, window=self.window, length=x.shape[-1])


def test_a_function_that_only_checks_numbers_has_a_shape():
    assert infer(symbolic_trace(Waves()), [(2, 80)])["output"].shape == (2, 80)


def test_a_number_that_is_read_has_none():
    class Read(nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    with pytest.raises(MBSError, match="depends on values"):
        infer(symbolic_trace(Read()), [(2, 3)])
