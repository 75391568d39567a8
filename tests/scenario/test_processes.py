"""Forks, spawned processes, threads, signals, and what is saved while Python shuts down."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest

from tests.harness import eventually, file_sha256, make_file
from tests.scenario.embedded import Root, held, run_trainer, trainer

pytestmark = pytest.mark.slow

LARGE = 100_000
START = """\
import atexit, hashlib, json, multiprocessing, os, pickle, signal, sys, threading
from ml_dash import Experiment
from ml_dash.errors import Code, MLDashError
from ml_dash.messages import Status, StatusReport
root = sys.argv[1]

def make():
    return Experiment("alice/cv/resnet", dash_root=root)

def connections(exp):
    return exp._connection.call(StatusReport, lambda number: Status(request=number)).connections

"""


def run(root: Root, script: str, *arguments: str) -> tuple[str, str, int]:
    return run_trainer(START + textwrap.dedent(script), str(root.path), *arguments)


def stored(root: Root) -> dict[str, str]:
    """File name → SHA-256, of what is listed, and lies in the root as it is listed, once each."""
    with root.experiment().run as exp:
        exp.files.flush(60)
        records = exp.files().list()
    found = {each["filename"]: each["checksum"] for each in records}
    assert len({each["id"] for each in records}) == len(records) == len(found) == len(root.files())
    assert {each["state"] for each in records} <= {"DONE"}
    assert {file_sha256(root.path / name) for name in root.files()} == set(found.values())
    return found


# ---- forks

FORKED = """
exp = make().run.start()
exp.files.save_text("parent", to="before.txt")
stop = threading.Event()

def busy(number):  # at each moment some thread is in the middle of a request, or waits on a socket of its own
    count = 0
    while not stop.is_set():
        content = bytes([number, count % 256]) * (50_000 if count % 2 else 50)
        exp.files.save_blob(content, to=f"busy-{number}-{count}").wait(30)
        count += 1

threads = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
children = []
for child in range(10):
    if (pid := os.fork()) == 0:
        signal.alarm(40)  # one that hangs is seen
        for number in range(3):
            exp.files.save_blob(bytes([child, number]) * 50_000, to=f"child-{child}-{number}.bin").wait(30)
            exp.files.save_text(f"{child} {number}", to=f"child-{child}-{number}.txt")
        os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children], flush=True)
stop.set()
for thread in threads:
    thread.join()
exp.files.save_text("parent again", to="after.txt")
"""


def test_children_that_save_while_their_parents_threads_do(root: Root) -> None:
    out, err, status = run(root, FORKED)
    assert (out, err, status) == (f"{[0] * 10}\n", "", 0)
    found = stored(root)
    made = [f"child-{child}-{number}.{kind}" for child in range(10) for number in range(3) for kind in ("bin", "txt")]
    assert {*made, "before.txt", "after.txt"} <= set(found)
    assert len({found[name] for name in made}) == len(made)


CHILD = """
exp = make().run.start()
open(os.path.join(root, "alice"), "w").close()  # files stay on their way
result = exp.files.save_blob(bytes(100_000), to="a.bin")
waiting = threading.Thread(target=result.wait, args=(60,))
waiting.start()
while connections(exp) < 2:
    pass
if os.fork() == 0:
    links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    print([os.readlink(each) for each in links if os.path.islink(each) and "socket" in os.readlink(each)])
    print(result["filename"], len(exp.files().list()), flush=True)
    os._exit(0)
os.wait()
print(connections(exp))
os.unlink(os.path.join(root, "alice"))
waiting.join()
"""


def test_a_child_has_none_of_its_parents_sockets(root: Root) -> None:
    """Nor those of threads that it does not have: else the daemon would not see when the parent has gone."""
    assert run(root, CHILD) == ("[]\na.bin 1\n2\n", "", 0)


def test_what_a_parent_has_made_is_waited_for_in_its_child(root: Root) -> None:
    script = """
    exp = make().run.start()
    result = exp.files.save_blob(bytes(100_000), to="a.bin")
    if (pid := os.fork()) == 0:
        result.wait(30)
        print(result.state, result["checksum"], flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print(result.state, result["checksum"])
    """
    out, err, status = run(root, script)
    assert (err, status) == ("", 0)
    in_child, in_parent = out.splitlines()
    assert in_child == in_parent == f"DONE {stored(root)['a.bin']}"


WORKERS = """
def work(exp, made, number, queue):
    exp.files(file_id=made["id"]).download(to=f"{root}-{number}")  # what the parent has made
    queue.put(exp.files.save_blob(bytes([number]) * 100_000, to=f"worker-{number}.bin"))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    queue = context.Queue()
    with make().run as exp:
        made = exp.files.save_text("parent", to="parent.txt")
        workers = [context.Process(target=work, args=(exp, made, number, queue)) for number in range(3)]
        for worker in workers:
            worker.start()
        for number in range(5):
            exp.files.save_blob(bytes([100 + number]) * 100_000, to=f"parent-{number}.bin")
        got = [queue.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
        exp.files.flush(30)
        for each in got:  # what a worker has made
            (mine,) = exp.files().list(each["filename"])
            assert (mine["checksum"], mine.state) == (each["checksum"], "DONE")
    print([worker.exitcode for worker in workers], sorted(each["filename"] for each in got))
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing(root: Root, tmp_path: Path, how: str) -> None:
    """As a data loader has them: the open experiment is theirs, too, and they save beside their parent."""
    script = tmp_path / "script.py"
    script.write_text(START + WORKERS)
    names = [f"worker-{number}.bin" for number in range(3)]
    assert run_trainer(script, str(root.path), how) == (f"[0, 0, 0] {names}\n", "", 0)
    assert len(stored(root)) == 1 + 5 + 3
    assert [Path(f"{root.path}-{number}").read_text() for number in range(3)] == ["parent"] * 3


# ---- threads

THREADS = """
exp = make().run.start()
start = threading.Barrier(16)

def work(number):
    start.wait()
    for count in range(8):
        size = (10, 40_000, 150_000, 1_500_000)[count % 4]
        exp.files.save_blob((f"{number} {count} ".encode() * size)[:size], to=f"{number}-{count}.bin")

threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
exp.run.complete()
"""


def test_sixteen_threads_that_save_at_once(root: Root) -> None:
    assert run(root, THREADS) == ("", "", 0)
    found = stored(root)
    assert len(found) == len(set(found.values())) == 16 * 8


# ---- the end of a process

AFTER_THE_ACK = """
exp = make().run.start()
exp.files.upload(sys.argv[2], to="a.bin")
exp.files.save_blob(bytes(200_000), to="b.bin")
exp.files.save_text("c", to="c.txt")
"""


@pytest.mark.parametrize("end", ["os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_process_that_ends_right_after_the_ack(root: Root, tmp_path: Path, end: str) -> None:
    digest = make_file(tmp_path / "a.bin", LARGE)
    script = START + AFTER_THE_ACK + f"os.unlink(sys.argv[2])\n{end}\n"
    _, err, status = run_trainer(script, str(root.path), str(tmp_path / "a.bin"))
    assert (err, status != 0) == ("", True)
    found = stored(root)
    assert set(found) == {"a.bin", "b.bin", "c.txt"}
    assert found["a.bin"] == digest


def test_a_notebook_whose_kernel_is_restarted(root: Root) -> None:
    """The daemon lives; the new kernel finds what the killed one saved, and goes on."""
    saving = (
        START
        + 'exp = make().run.start()\nexp.files.save_blob(bytes(100_000), to=sys.argv[2])\nprint("saved", flush=True)\n'
    )
    for number in range(3):
        kernel = trainer(saving + "signal.pause()", str(root.path), f"{number}.bin")
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == "saved\n"
        pid = root.status().pid
        kernel.kill()
        kernel.communicate()
        eventually(lambda: root.status().connections == 1)
    assert root.status().pid == pid
    assert set(stored(root)) == {"0.bin", "1.bin", "2.bin"}


def test_sigterm_in_the_middle_of_a_save(root: Root) -> None:
    """What was acknowledged is there, what was not is nowhere, and its slot is gone."""
    script = """
    exp = make().run.start()
    exp.files.save_blob(bytes(300_000), to="before.bin")
    class Slow(bytearray): pass
    grant = exp._connection._grant
    def granted(size):
        slot = grant(size)
        os.kill(os.getpid(), signal.SIGTERM)
        return slot
    exp._connection._grant = granted
    exp.files.save_blob(bytes(400_000), to="during.bin")
    print("too late")
    """
    assert run(root, script) == ("", "", -signal.SIGTERM)
    assert set(stored(root)) == {"before.bin"}
    eventually(lambda: root.status().spool_bytes == 0)


INTERRUPTED = """
exp = make().run.start()
open(os.path.join(root, "alice"), "w").close()  # nothing is stored for now, so every save gets a slot of its own
expected = {}

def interrupt_at(step):
    # Ctrl-C before the client's own line of that number, as they are run through; says whether it came to that.
    left = step
    def trace(frame, event, argument):
        nonlocal left
        if "ml_dash/connection.py" not in frame.f_code.co_filename:
            return None
        left -= event in ("line", "return")
        if not left:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace
    sys.settrace(trace)

def save(name, size):
    content = name.encode() * size
    made = exp.files.save_blob(content, to=name)
    assert (made["filename"], made["sizeBytes"]) == (name, len(content))
    expected[name] = content

for step in range(1, 1000):
    save(f"before-{step}", 1)
    interrupt_at(step)
    try:
        exp.files.save_blob(b"y" * 300_000, to="interrupted")
    except KeyboardInterrupt:
        pass
    else:
        break
    finally:
        sys.settrace(None)
    # The connection answers what it is asked, not what it was asked before, and each slot is the one that it says.
    save(f"after-{step}", 10_000)
    save(f"small-{step}", 1)
    exp._connection.close()
os.unlink(os.path.join(root, "alice"))
exp.files.flush(60)
for name, content in expected.items():
    (found,) = exp.files().list(name)
    assert found["checksum"] == hashlib.sha256(content).hexdigest(), name
print(step, len(expected))
"""


def test_ctrl_c_anywhere_in_a_save(root: Root) -> None:
    """Before each line of the client's connection that a save runs through."""
    out, err, status = run(root, INTERRUPTED)
    assert (err, status) == ("", 0)
    steps, files = map(int, out.split())
    assert steps > 80
    assert files == 3 * steps - 2


def test_ctrl_c_while_content_is_copied_costs_no_slot(root: Root) -> None:
    """A connection may write into sixteen at once."""
    script = """
    from ml_dash.lease import Lease

    def interrupted(*_):
        raise KeyboardInterrupt

    exp = make().run.start()
    write, Lease.write = Lease.write, interrupted
    count = 0
    for _ in range(20):
        try:
            exp.files.save_blob(bytes(200_000), to="never.bin")
        except KeyboardInterrupt:
            count += 1
    Lease.write = write
    exp.files.save_blob(bytes(200_000), to="a.bin")
    print(count)
    """
    assert run(root, script) == ("20\n", "", 0)
    assert set(stored(root)) == {"a.bin"}


def test_ctrl_c_while_a_daemon_is_slow_to_answer(root: Root) -> None:
    """The answer that comes after all is nobody's: the next request gets its own."""
    script = """
    exp = make().run.start()
    exp.files.save_text("first", to="first.txt")
    print("ready", flush=True)
    sys.stdin.readline()
    for save in (exp.files.save_text, exp.files().list):
        try:
            save("late", to="late.txt") if save == exp.files.save_text else save()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.stdin.readline()
        second = exp.files.save_text("second", to="second.txt")
        print(second["filename"], second["sizeBytes"], len(exp.files().list("first.txt")))
    """
    process = trainer(START + textwrap.dedent(script), str(root.path))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    pid = root.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
        eventually(lambda: wchan(process.pid).startswith("unix_stream"))
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert process.communicate("go\n", timeout=60) == ("second.txt 6 1\n" * 2, "")
    assert process.returncode == 0


def wchan(pid: int) -> str:
    """Where in the kernel a process waits."""
    return Path(f"/proc/{pid}/wchan").read_text()


def test_ctrl_c_while_leaving_waits(root: Root) -> None:
    """It says what remains, and goes; the run has ended, and can be opened again."""
    script = """
    open(os.path.join(root, "alice"), "w").close()
    exp = make()
    try:
        with exp.run:
            exp.files.save_text("x", to="a.txt")
            print("saved", flush=True)
    except KeyboardInterrupt:
        print(exp.run.state)
    os.unlink(os.path.join(root, "alice"))
    exp.run.start()
    print(exp.files().list()[0].wait(30).state)
    """
    root.path.mkdir()
    process = trainer(START + textwrap.dedent(script), str(root.path))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "saved\n"
    assert process.stderr.readline() == "ml-dash: waiting for 1 file to be stored\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "COMPLETED\nDONE\n"
    assert err.startswith("ml-dash: 1 file not stored yet; the daemon goes on. To wait for it: ml-dash wait --root ")
    assert process.returncode == 0


def test_ctrl_c_while_a_daemon_is_started_does_not_end_it(root: Root) -> None:
    """The terminal sends it to the whole foreground group."""
    script = """
    exp = make().run.start()
    os.killpg(0, signal.SIGINT)
    """
    _, _, status = run_trainer(START + textwrap.dedent(script), str(root.path), start_new_session=True)
    assert status == -signal.SIGINT
    assert root.status().embedded


# ---- what interrupts a save and saves itself


def test_a_signal_handler_that_saves_in_the_middle_of_a_save(root: Root) -> None:
    """As before a preemption. Each gets its own answer."""
    script = """
    exp = make().run.start()
    exp.files.save_text("first", to="first.txt")

    def preempted(*_):
        text = exp.files.save_text("handler", to="handler.txt")
        blob = exp.files.save_blob(b"h" * 200_000, to="handler.bin")
        print(text["filename"], blob["filename"], flush=True)

    signal.signal(signal.SIGUSR1, preempted)
    print("ready", flush=True)
    sys.stdin.readline()
    main = getattr(exp.files, sys.argv[2])(*((b"m" * 300_000,) if sys.argv[2] == "save_blob" else ("main",)), to="main")
    print(main["filename"], main["sizeBytes"])
    """
    for how, size in (("save_text", 4), ("save_blob", 300_000)):
        process = trainer(START + textwrap.dedent(script), str(root.path), how)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pid = root.status().pid
        os.kill(pid, signal.SIGSTOP)
        try:
            process.stdin.write("go\n")
            process.stdin.flush()
            eventually(lambda process=process: wchan(process.pid).startswith("unix_stream"))
            process.send_signal(signal.SIGUSR1)
            eventually(lambda process=process: connecting(process.pid))
        finally:
            os.kill(pid, signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        assert (out, err, process.returncode) == (f"handler.txt handler.bin\nmain {size}\n", "", 0)


def connecting(pid: int) -> bool:
    """Whether a process has a second socket."""
    links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return sum(str(link).startswith("socket:") for link in links) == 2


def test_a_timer_that_saves_all_the_time(root: Root) -> None:
    script = """
    exp = make().run.start()
    count = 0

    def again(*_):
        global count
        exp.files.save_blob(count.to_bytes(4, "big") * (20 if count % 2 else 25_000), to=f"timer-{count}")
        count += 1
        signal.setitimer(signal.ITIMER_REAL, 0.003)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    for number in range(100):
        content = b"m" + number.to_bytes(4, "big") * (20 if number % 2 else 30_000)
        assert exp.files.save_blob(content, to=f"main-{number}")["filename"] == f"main-{number}"
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    exp.run.complete()
    print(count)
    """
    out, err, status = run(root, script)
    assert (err, status) == ("", 0)
    found = stored(root)
    assert len(found) == len(set(found.values())) == 100 + int(out)
    assert int(out) > 5


def test_a_signal_handler_that_saves_while_the_daemon_is_started(root: Root) -> None:
    """It is told to come again; whoever was starting it goes on."""
    script = """
    exp, other = make(), make()

    def handler(*_):
        try:
            other.run.start()
        except MLDashError as failure:
            print(failure.code)

    signal.signal(signal.SIGALRM, handler)
    from ml_dash import reach
    launch = reach._launch

    def launched(*told):
        signal.raise_signal(signal.SIGALRM)
        return launch(*told)

    reach._launch = launched
    exp.run.start().files.save_text("x", to="a.txt")
    other.run.start().files.save_text("x", to="b.txt")
    """
    assert run(root, script) == ("DAEMON_UNAVAILABLE\n", "", 0)
    assert set(stored(root)) == {"a.txt", "b.txt"}


# ---- Python's own end

AT_EXIT = """
exp = make().run.start()
exp.files.save_text("main", to="main.txt")

class Last:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        exp.files.save_blob(self.name.encode() * 50_000, to=self.name)

def late():
    threading.main_thread().join()
    exp.files.save_blob(b"thread" * 30_000, to="thread.bin")

atexit.register(lambda: exp.files.save_blob(b"atexit" * 30_000, to="atexit.bin"))
atexit.register(lambda: exp.files.save_text("atexit", to="atexit.txt"))
threading.Thread(target=late).start()
module_global = Last("global.bin")
in_a_ring = Last("ring.bin")
in_a_ring.itself = in_a_ring
"""


def test_what_is_saved_while_python_shuts_down(root: Root) -> None:
    """From atexit, from a thread that outlives main, and from __del__: saved, or refused with an error."""
    out, err, status = run(root, AT_EXIT)
    assert (out, status) == ("", 0)
    assert err == ""
    assert set(stored(root)) == {
        "main.txt", "atexit.bin", "atexit.txt", "thread.bin", "global.bin", "ring.bin",
    }  # fmt: skip


FIRST_AT_EXIT = """
exp = make()

class Last:
    def __del__(self):
        try:
            exp.run.start().files.save_text("x", to="del.txt")
            print("saved", flush=True)
        except MLDashError as failure:
            print(failure.code, failure.message, flush=True)

keep = Last()
keep.itself = keep
if sys.argv[2] == "atexit":
    atexit.register(lambda: exp.run.start().files.save_text("x", to="atexit.txt"))
"""


@pytest.mark.parametrize("when", ["atexit", "__del__"])
def test_a_daemon_that_is_needed_only_then(root: Root, when: str) -> None:
    """One can be started from atexit. Later, where Python starts no process any more, that is said."""
    out, err, status = run(root, FIRST_AT_EXIT, when)
    assert (err, status) == ("", 0)
    if when == "atexit":
        assert out == "saved\n"
        assert set(stored(root)) == {"atexit.txt", "del.txt"}
    elif out != "saved\n":
        assert out.startswith("DAEMON_UNAVAILABLE Python is shutting down")
    else:
        assert set(stored(root)) == {"del.txt"}


def test_a_trainer_that_is_killed_keeps_nothing_held(root: Root) -> None:
    """Its slots are free again, and what it had handed over goes on."""
    script = """
    exp = make().run.start()
    exp.files.save_blob(bytes(2_000_000), to="a.bin")
    exp._connection._grant(5_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with held(root) as let_go:
        assert run(root, script)[2] == -signal.SIGKILL
        eventually(lambda: root.status().spool_bytes < 3_000_000)
        let_go()
    assert set(stored(root)) == {"a.bin"}
    eventually(lambda: root.status().spool_bytes == 0)
