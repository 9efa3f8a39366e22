"""The conformance test passes a good stranger's layer, and names the promise that a broken one breaks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.errors import ConformanceError
from feedfwd.testing import check_ffn
from stranger import Maxout, Narrow


class Good(nn.Module):
    """What the broken ones below differ from by one thing."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class ReturnsATuple(Good):
    def forward(self, x):
        return super().forward(x), torch.zeros(())


class Inplace(Good):
    def forward(self, x):
        return super().forward(x.mul_(2))


class DropsInEval(Good):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class CountsInEval(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += x.shape[0]
        return super().forward(x)


class BatchStatistics(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return super().forward(self.norm(x.reshape(-1, x.shape[-1])).view_as(x))


class MixesTokens(Good):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class KnowsItsPlace(Good):
    def forward(self, x):
        places = torch.arange(x.shape[:-1].numel(), dtype=x.dtype).view(*x.shape[:-1], 1)
        return super().forward(x) + 0.1 * places


class ThreeAxesOnly(Good):
    def forward(self, x):
        tokens = 1
        for size in x.shape[:-1]:
            tokens *= size
        return super().forward(x.view(tokens, x.shape[-1])).view(x.shape)


class TokenByToken(Good):
    def forward(self, x):
        return torch.stack([super(TokenByToken, self).forward(token) for token in x.reshape(-1, x.shape[-1])]).view_as(
            x
        )


class HidesALayer(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self.more = [nn.Linear(width, width)]

    def forward(self, x):
        return super().forward(x + self.more[0](x))


class HidesATensor(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self._scale = torch.ones(width)

    def forward(self, x):
        return super().forward(x * self._scale)


class UnusedParameter(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self.spare = nn.Parameter(torch.zeros(3))


class CutsTheGradient(Good):
    def forward(self, x):
        return self.down(torch.relu(self.up(x)).detach())


class ForgetsItsDraw(Good):
    def __init__(self, width, hidden):
        super().__init__(width, hidden)
        self.register_buffer("project", torch.randn(width, width), persistent=False)

    def forward(self, x):
        return super().forward(x @ self.project)


class CopiesItselfOnly(Good):
    def __deepcopy__(self, memo):
        return self


class SinglePrecision(Good):
    def forward(self, x):
        return x + super().forward(x).float() if x.dtype == torch.float32 else super().forward(x).float()


class NoAutocast(Good):
    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        return torch.zeros_like(rows).index_add_(0, torch.arange(len(rows)), super().forward(rows)).view_as(x)


class IgnoresDropout(Good):
    def __init__(self, width, hidden, dropout=0.0):
        super().__init__(width, hidden)


BROKEN = [
    (lambda width, hidden: F.relu, "one tensor to one tensor", "a function was built", "return the output alone"),
    (ReturnsATuple, "one tensor to one tensor", "the output is a tuple", "return the output alone"),
    (Narrow, "of the same shape", r"an input of the shape \(6, 16\) gave \(6, 1\)", "return the output"),
    (Inplace, "the input is left as it is", "the input changed in 96 places", r"x = x \+ y instead of x \+= y"),
    (DropsInEval, "in eval mode the same input", "two calls differ by", "training=self.training"),
    (CountsInEval, "changes nothing in the layer", "a call changed seen", "if self.training"),
    (BatchStatistics, "each token is treated by itself", "when one was changed .training mode.", "nn.LayerNorm"),
    (MixesTokens, "each token is treated by itself", "when one was changed .eval mode.", "dim=-1"),
    (KnowsItsPlace, "each token is treated by itself", "when it comes alone", "last axis"),
    (ThreeAxesOnly, "any leading dimensions", "view size is not compatible", r"x.reshape\(-1"),
    (TokenByToken, "one token and none", r"shape \(0, 16\)", "allow for 0 rows"),
    (HidesALayer, "a submodule", "more is a plain attribute of HidesALayer", "nn.ModuleList"),
    (HidesATensor, "a parameter or a buffer", "_scale is a plain attribute", "register_buffer"),
    (UnusedParameter, "requires a gradient gets a finite one", "no gradient reached spare", "not used"),
    (CutsTheGradient, "and so does the input", "no gradient reached the input, up.weight, up.bias", "detach"),
    (ForgetsItsDraw, "state_dict holds all", "differs from it by", "persistent buffer"),
    (CopiesItselfOnly, "gives an independent layer", "changing the copy changed the original", "closure"),
    (SinglePrecision, "follows .to.dtype.", "torch.float64 on cpu gave torch.float32", "dtype=x.dtype"),
    (NoAutocast, "and autocast", "index_add_.*scalar type", "cast before adding"),
    (IgnoresDropout, "drops something while training", "gave the same", "nn.Dropout"),
]


def test_good_layers_pass_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    check_ffn(Good)
    check_ffn(Maxout)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("make", "promise", "seen", "instead"), BROKEN, ids=[str(case[0].__name__) for case in BROKEN])
def test_broken_ones_hear_which_promise_what_was_seen_and_what_to_write(make, promise, seen, instead) -> None:
    with pytest.raises(ConformanceError, match=f"(?s)Promised: .*{promise}.*Seen: .*{seen}.*: .*{instead}") as caught:
        check_ffn(make)
    assert make.__name__ in str(caught.value)


def test_what_only_an_option_breaks_is_found_and_the_call_is_quoted() -> None:
    class FailsWithoutBias(Good):
        def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
            super().__init__(width, hidden)
            self.up.bias.requires_grad_(bias).mul_(1) if not bias else None
            self.extra = None if bias else nn.Parameter(torch.zeros(1))

    with pytest.raises(ConformanceError, match=r"FailsWithoutBias\(16, 32, bias=False\).*no gradient reached extra"):
        check_ffn(FailsWithoutBias)


def test_the_cause_of_an_exception_stays_attached() -> None:
    class Raises(Good):
        def forward(self, x):
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ConformanceError, match="ZeroDivisionError: on purpose") as caught:
        check_ffn(Raises)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
