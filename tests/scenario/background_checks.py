"""A program for a Python that has torch: saves in the background, with a double in place of a GPU.

background_checks.py checks FOLDER     as torch_checks.py
background_checks.py PROGRAM PREFIX    one of those below, for a test that looks at what is left of it
"""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch_checks import back, by_torch, result_of, run_checks, same

from ml_dash import Experiment, MLDashError, snapshot
from ml_dash.errors import Code, error
from ml_dash.slot_writer import GATHER_BYTES, SlotWriter

sys.path.append(str(Path(__file__).parents[1] / "doubles"))
from gpu import gpu

WAIT_S = 60
LARGE = GATHER_BYTES


@contextmanager
def held() -> Iterator[threading.Event]:
    """What is saved in the background waits until the event is set: it is at the end of the block."""
    go = threading.Event()
    write_to = snapshot.Piece.write_to

    def write(piece: Any, slot: Any) -> None:
        assert go.wait(WAIT_S)
        write_to(piece, slot)

    with mock.patch.object(snapshot.Piece, "write_to", write):
        try:
            yield go
        finally:
            go.set()


def save(exp: Any, value: Any, to: str = "a.pt", **described: Any) -> Any:
    return exp.files("here").save_torch(value, to=to, background=True, **described)


def read(exp: Any, result: Any, weights_only: bool = True) -> Any:
    result_of[result["id"]] = exp
    return back(result, weights_only)


def code_of(call: Any) -> Code | None:
    try:
        call()
    except MLDashError as failure:
        return failure.code
    return None


def check_tensors_of_a_gpu_are_saved_as_they_were_at_the_call(exp: Any) -> None:
    base = torch.arange(LARGE, dtype=torch.float32)
    state: dict[str, Any] = {
        "base": base, "view": base[100:], "bf16": torch.randn(LARGE).bfloat16(), "small": torch.arange(7),
        "0-d": torch.tensor(3.5), "empty": torch.empty(0), "parameter": nn.Parameter(torch.ones(LARGE)),
        "coo": torch.sparse_coo_tensor(torch.arange(LARGE)[None], torch.randn(LARGE), (LARGE,)),
        "plain": {"epoch": 3, "names": ["a"]}, "storage": torch.ones(LARGE).untyped_storage(),
    }  # fmt: skip
    expected = by_torch(state)
    storages = [torch.empty(0, dtype=torch.uint8).set_(state.pop("storage"))]
    state["storage"] = storages[0].untyped_storage()
    with held(), gpu() as double, torch.no_grad():
        result = save(exp, state)
        assert double.page_locked == 9
        assert not result.acknowledged
        assert result, "it is true, and does not wait for that"
        assert repr(result) == "<here/a.pt: not acknowledged yet>"
        assert result != {}
        for one in (base, state["bf16"], state["small"], state["0-d"], state["parameter"], *storages):
            one.zero_()
        state["coo"]._values().zero_()
        state["plain"]["epoch"] = 4
        state["new"] = 5
    loaded = read(exp, result)
    assert result.acknowledged
    assert loaded.keys() == expected.keys()
    storages = [
        torch.empty(0, dtype=torch.uint8).set_(one.pop("storage")._untyped_storage) for one in (loaded, expected)
    ]
    assert same(*storages)
    assert same(loaded, expected)
    loaded["base"][150] = -1
    assert loaded["view"][50] == -1, "what was shared is not any more"


def check_nothing_of_the_gpu_is_held(exp: Any) -> None:
    """Not even until the next garbage collection."""
    copied, storages = snapshot.Copies._copied, []

    def watched(copies: Any, storage: Any) -> Any:
        storages.append(weakref.ref(storage))
        return copied(copies, storage)

    gc.disable()
    with held(), gpu(), mock.patch.object(snapshot.Copies, "_copied", watched):
        result = save(exp, {"a": torch.ones(LARGE), "b": torch.ones(3)})
        assert [storage() for storage in storages] == [None, None]
    gc.enable()
    assert torch.equal(read(exp, result)["a"], torch.ones(LARGE))


def check_a_module(exp: Any) -> None:
    made = nn.Sequential(nn.Linear(600, 400), nn.BatchNorm1d(400), nn.Linear(400, 3))
    expected = by_torch(made.state_dict())
    with held(), gpu(), torch.no_grad():
        result = save(exp, made)
        made[0].weight.zero_()
    assert same(read(exp, result, weights_only=False).state_dict(), expected)


def check_copies_run_behind_what_the_caller_began(exp: Any) -> None:
    tensor = torch.zeros(LARGE)
    with gpu() as double:
        double.callers.begun.append(lambda: tensor.fill_(7))
        result = save(exp, tensor)
    assert torch.equal(read(exp, result), torch.full((LARGE,), 7.0))


def check_what_is_on_the_host_is_saved_at_the_call(exp: Any) -> None:
    for size in (3, LARGE):
        tensor = torch.ones(size)
        with held():
            result = save(exp, tensor, to=f"{size}.pt")
            tensor.zero_()
            assert result.acknowledged
            assert int(result.id) == int(result["id"]) > 0
        assert torch.equal(read(exp, result), torch.ones(size))


def check_the_third_waits_for_the_memory_of_the_first(exp: Any) -> None:
    done = threading.Event()

    def third() -> None:
        results.append(save(exp, torch.full((LARGE,), 2.0)))
        done.set()

    with held() as go, gpu() as double:
        results = [save(exp, torch.full((LARGE,), float(number))) for number in range(2)]
        thread = threading.Thread(target=third)
        thread.start()
        assert not done.wait(0.2)
        assert double.page_locked == 2, "it took memory"
        go.set()
        thread.join(WAIT_S)
    for number, result in enumerate(results):
        assert torch.equal(read(exp, result), torch.full((LARGE,), float(number)))
    assert [int(one["id"]) for one in results] == sorted(int(one["id"]) for one in results), "in order"


def check_a_later_save_of_the_path_is_the_newer_version(exp: Any) -> None:
    savers = [
        lambda: exp.files.save_text("newer", to="here/a.pt"),
        lambda: exp.files("here").save_blob(b"newer" * 50_000, to="a.pt"),
        lambda: exp.files("here").upload(__file__, to="a.pt"),
        lambda: exp.files("here").upload_many({"a.pt": __file__}),
        lambda: save(exp, torch.ones(3)),
    ]
    for saver in savers:
        done = threading.Event()
        with held() as go:
            with gpu():
                older = save(exp, torch.ones(LARGE))
            thread = threading.Thread(target=lambda saver=saver, done=done: (saver(), done.set()))
            thread.start()
            exp.files("here").save_text("another path", to="b.txt")
            assert not done.wait(0.1)
            go.set()
            thread.join(WAIT_S)
        assert int(exp.files("here").list("a.pt", latest=True)[0].id) > int(older.id)


def check_it_reads_as_a_dict(exp: Any) -> None:
    with gpu():
        expected = {**save(exp, torch.ones(LARGE), tags=["x"])}
        reads = [dict, copy.copy, copy.deepcopy, lambda one: json.loads(json.dumps(one)), lambda one: one | {},
                 lambda one: dict(one.items()), lambda one: dict(zip(one.keys(), one.values(), strict=True)),
                 lambda one: pickle.loads(pickle.dumps(one)), lambda one: {key: one[key] for key in one},  # noqa: S301
                 lambda one: dict(reversed([*reversed([*one.items()])])), lambda one: one.refresh().copy(),
                 lambda one: {key: one.get(key) for key in reversed(one)},
                 lambda one: one.wait(WAIT_S).copy()]  # fmt: skip
        for number, as_dict in enumerate(reads):
            with held() as go:
                result = save(exp, torch.ones(LARGE), tags=["x"])
                threading.Timer(0.05, go.set).start()
                got = as_dict(result)
            assert got.keys() == expected.keys(), number
            assert (got["tags"], got["checksum"]) == (["x"], expected["checksum"]), number
        with held() as go:
            results = [save(exp, torch.ones(LARGE)) for _ in range(2)]
            threading.Timer(0.05, go.set).start()
            assert len(results[0]) == len(expected)
            assert "id" in results[1]
        assert results[1].progress().total_bytes == results[1]["sizeBytes"]


def check_waits_end_in_time(exp: Any) -> None:
    with held(), gpu():
        result = save(exp, torch.ones(LARGE))
        assert code_of(lambda: result.wait(0.05)) is Code.TIMEOUT
        assert code_of(lambda: exp.files.flush(0.05)) is Code.TIMEOUT
        assert exp.files().list() == [], "it is not acknowledged"
    exp.flush(WAIT_S)
    assert result.state == "DONE"


def check_a_signal_handler_does_not_wait_for_what_it_has_interrupted(exp: Any) -> None:
    """It came while its thread was sending, which the background waits for."""
    with gpu(), held() as go:
        older = save(exp, torch.ones(LARGE))
        with exp._connection.background.connection._lock:
            go.set()
            newer = save(exp, torch.zeros(LARGE))
            assert newer.acknowledged
            assert code_of(exp.files.flush) is Code.TIMEOUT
            assert not older.acknowledged
    assert older.wait(WAIT_S)


@contextmanager
def failing() -> Iterator[None]:
    def fail(*_: Any) -> Any:
        raise error(Code.DISK_FAILED, "no")

    with mock.patch.object(SlotWriter, "hand_over", fail), gpu():
        yield


def check_failures_are_told_once_somewhere(exp: Any) -> None:
    with failing():
        for read_it in (lambda one: one.id, lambda one: one["path"], lambda one: one.wait(), dict):
            one = save(exp, torch.ones(LARGE))
            assert code_of(lambda one=one, read_it=read_it: read_it(one)) is Code.DISK_FAILED
            assert not one.acknowledged
            assert "not acknowledged" in repr(one)
        exp.flush(WAIT_S)
        for _ in range(2):
            save(exp, torch.ones(LARGE))
        assert [code_of(lambda: exp.files.flush(WAIT_S)) for _ in range(3)] == [
            Code.DISK_FAILED,
            Code.DISK_FAILED,
            None,
        ]
        another = Experiment(prefix="alice/torch/lost").run
        with suppress(MLDashError), another as inner:
            save(inner, torch.ones(LARGE))
        assert another.state == "FAILED"
        assert code_of(lambda: another.start() and save(another.start(), torch.ones(LARGE)) and another.complete())
        another.complete()
        assert another.state == "COMPLETED"
    assert torch.equal(read(exp, save(exp, torch.ones(LARGE))), torch.ones(LARGE)), "no slot and no memory is lost"
    with suppress(ValueError), gpu():
        save(exp, [torch.ones(LARGE), threading.Lock()])
    with held(), gpu():
        results = [save(exp, torch.ones(LARGE)) for _ in range(2)]
    assert all(one.wait(WAIT_S) for one in results)


def check_a_forked_child_has_nothing_to_do_with_it(exp: Any) -> None:
    with held(), gpu():
        result = save(exp, torch.ones(LARGE))
        if not (child := os.fork()):
            good = code_of(lambda: result["id"]) is Code.CONNECTION_LOST
            exp.files.flush(WAIT_S)
            mine = save(exp, torch.zeros(LARGE), to="child.pt")
            snapshot.Piece.write_to.__closure__[0].cell_contents.set()  # the event of `held`
            os._exit(0 if good and mine.wait(WAIT_S) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not result.acknowledged
    assert torch.equal(read(exp, result), torch.ones(LARGE))
    assert torch.equal(read(exp, exp.files("here/child.pt").list()[0]), torch.zeros(LARGE))


# ---- programs of which a test looks at what is left


def ends(prefix: str) -> None:
    """A script that ends with the call, without an end of its run. The first of its two saves fails after that."""
    exp = Experiment(prefix=prefix, wait=False).run.start()
    write_to, failures = snapshot.Piece.write_to, iter([error(Code.DISK_FAILED, "no")])

    def write(piece: Any, slot: Any) -> None:
        threading.main_thread().join()  # the script is at its end by now
        for failure in failures:
            raise failure
        write_to(piece, slot)

    mock.patch.object(snapshot.Piece, "write_to", write).start()
    with gpu():
        save(exp, torch.ones(LARGE), to="lost.pt")
        save(exp, {"a": torch.arange(3_000_000), "b": torch.ones(5)})


def held_up(prefix: str) -> None:
    """A script that waits in the middle of the hand-over until it is told to go on."""
    with held() as go, gpu(), Experiment(prefix=prefix, wait=False).run as exp:
        save(exp, {"a": torch.arange(3_000_000), "b": torch.ones(5)})
        print("saved", flush=True)
        sys.stdin.readline()
        go.set()


if __name__ == "__main__":
    if sys.argv[1] == "checks":
        run_checks(globals(), "background")
    else:
        {"ends": ends, "held_up": held_up}[sys.argv[1]](sys.argv[2])
