"""More checks of torch_checks.py, which runs these: models and their training, there and back, bit for bit."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch_checks import BIG, back, by_torch, result_of, same, save

FULL = "full" in sys.argv
LAYERS, WIDTH, WORDS = (12, 768, 50257) if FULL else (2, 96, 1000)
"""GPT-2's 124 million parameters, or a small one like it."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("bias", torch.ones(64, 64, dtype=torch.bool).tril())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


class Gpt2(nn.Module):
    """Its layers, by its names; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 7, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3),
        nn.Conv2d(32, 64, 3, groups=4), nn.GroupNorm(4, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def check_a_convolutional_net(exp: Any) -> None:
    for memory in (torch.contiguous_format, torch.channels_last):
        made = conv_net().to(memory_format=memory)
        made(torch.randn(2, 3, 64, 64)).sum().backward()
        loaded = back(save(exp, made.state_dict()))
        assert same(loaded, by_torch(made.state_dict()))
        other = conv_net().to(memory_format=memory)
        other.load_state_dict(loaded)
        pixels = torch.randn(2, 3, 64, 64)
        assert torch.equal(other.eval()(pixels), made.eval()(pixels))


def check_a_transformer_with_tied_weights(exp: Any) -> None:
    made = Gpt2()
    result = save(exp, made.state_dict())
    loaded = back(result)
    assert same(loaded, by_torch(made.state_dict()))
    assert loaded["lm_head.weight"].data_ptr() == loaded["wte.weight"].data_ptr(), "it is tied no more"
    own = sum(one.nbytes for one in made.state_dict().values()) - made.wte.weight.nbytes
    assert result["sizeBytes"] < own + 2000 * len(loaded), "it is in there twice"
    half = {name: one.bfloat16() for name, one in made.state_dict().items()}
    assert same(back(save(exp, half)), by_torch(half))
    whole = back(save(exp, made), weights_only=False)
    assert whole.lm_head.weight is whole.wte.weight


def check_states_of_optimizers(exp: Any) -> None:
    for kind, options in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"amsgrad": True})):
        made = conv_net()
        groups = [{"params": made[0].parameters(), "lr": 0.5}, {"params": made[8].parameters()}]
        optimizer = kind(groups, lr=0.1, **options)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        made(torch.randn(2, 3, 64, 64)).sum().backward()
        optimizer.step()
        schedule.step()
        state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}
        loaded = back(save(exp, state))
        assert same(loaded, by_torch(state))
        again = kind([{"params": [*group["params"]]} for group in optimizer.param_groups], lr=1, **options)
        again.load_state_dict(loaded["optimizer"])
        assert same(again.state_dict(), optimizer.state_dict())


def check_quantized_tensors(exp: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to leave them to another package
        numbers = torch.randn(BIG)
        scales, points = torch.rand(200) + 0.1, torch.zeros(200, dtype=torch.int64)
        state = {
            "one scale": torch.quantize_per_tensor(numbers, 0.1, 3, torch.qint8),
            "a scale each": torch.quantize_per_channel(numbers.reshape(200, -1), scales, points, 0, torch.quint8),
        }
        loaded, expected = back(save(exp, state)), by_torch(state)
        for name, one in expected.items():
            assert (loaded[name].dtype, loaded[name].qscheme()) == (one.dtype, one.qscheme())
            assert torch.equal(loaded[name].int_repr(), one.int_repr())
            assert torch.equal(loaded[name].dequantize(), one.dequantize())


class Labelled(torch.Tensor):
    """A user's own tensor, with something of its own."""

    label: str


def check_subclasses_of_tensors(exp: Any) -> None:
    one = torch.randn(BIG).as_subclass(Labelled)
    one.label = "mine"
    loaded = back(save(exp, {"one": one, "buffer": nn.Buffer(torch.ones(BIG))}), weights_only=False)
    assert (type(loaded["one"]), loaded["one"].label) == (Labelled, "mine")
    assert torch.equal(loaded["one"].as_subclass(torch.Tensor), one.as_subclass(torch.Tensor))
    assert isinstance(loaded["buffer"], nn.Buffer)


def check_a_file_of_torchs_own_comes_back_as_it_was(exp: Any) -> None:
    """The other way round: torch.save writes it, upload() hands it over. What we save is read as it is, mapped too."""
    folder, state = Path(sys.argv[-1]), conv_net().state_dict()
    torch.save(state, folder / "plain.pt")
    uploaded = exp.files("here").upload(folder / "plain.pt")
    result_of[uploaded["id"]] = exp
    saved = save(exp, state, to="plain.pt")
    assert same(back(uploaded), back(saved))
    mapped = torch.load(folder / f"{saved['id']}.pt", weights_only=True, mmap=True)
    assert same({name: one.clone() for name, one in mapped.items()}, dict(state))
