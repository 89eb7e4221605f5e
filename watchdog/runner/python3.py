"""The Python runner: loads a bundle, runs init() once, and forks workers that call predict().

It speaks docs/runner-protocol.md with the watchdog that started it. It uses nothing outside the
standard library, because it shares an interpreter with the model's own dependencies.

Arguments: BUNDLE ENTRY START_METHOD CHANNELS JOURNAL_FD
"""

import gc
import json
import mmap
import os
import platform
import select
import signal
import struct
import sys
import traceback
from time import perf_counter_ns

WIRE_VERSION = 1
HEADER = struct.Struct("<IBBHQQ")  # length, kind, flags, zero, id, elapsed

FORK, KILL = 1, 2
HELLO, READY, INIT_FAILED, FORKED, EXITED = 16, 17, 18, 19, 20
FLAG_MORE = 1
FLAG_HOLD = 2
UP, RESPONSE, RAISED, NOT_STRING, SKIPPED = 48, 49, 50, 51, 52

# The journal: one slot of SLOT bytes a worker. Its first words are these, its replies follow at AREA.
SLOT = 1 << 17
AREA = 64
GENERATION, COMMITTED, CLAIMED, REVOKED = 0, 1, 2, 3

READ_SIZE = 1 << 16
# A reply waits for those after it at most this long before it is written.
FLUSH_AFTER_NS = 150_000
# Descriptors of the protocol are moved up here, out of reach of a model that closes small numbers.
FIRST_FD = 64


def text(obj):
    """UTF-8 of obj's str, whatever it holds: lone surrogates come out as escapes."""
    return str(obj).encode("utf-8", "backslashreplace")


def authors(trace):
    """The part of a traceback that is the model's author's: less the runner's and import's frames."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        trace = trace.tb_next
    return trace


def describe(error):
    """The payload of RAISED: type, message and traceback, separated by NUL."""
    try:
        message = text(error)
    except BaseException:
        message = b"(its message could not be read)"
    try:
        trace = text("".join(traceback.format_exception(type(error), error, authors(error.__traceback__))))
    except BaseException:
        trace = b"(no traceback)"
    parts = (text(type(error).__name__), message, trace)
    return b"\0".join(part.replace(b"\0", b"\\0") for part in parts)


def write_all(fd, data):
    """Write every byte, however often the pipe is full."""
    done = os.write(fd, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(fd, view[done:])


def send(fd, kind, ident=0, elapsed=0, payload=b""):
    write_all(fd, HEADER.pack(len(payload), kind, 0, 0, ident, elapsed) + payload)


def flush_streams():
    """Write out what was printed; a model may have closed or replaced either stream."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def move_up(fd):
    """A duplicate of fd that a forked worker keeps and an executed program does not."""
    import fcntl

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)
    os.close(fd)
    return high


def die_with_parent(armed):
    """Ask the kernel to kill this process when its parent dies; Linux only, and only a second line."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL if armed else 0, 0, 0, 0)
    except Exception:
        pass


class Model:
    """The bundle's functions, loaded in this process."""

    def __init__(self, bundle, entry):
        import importlib.util

        name = os.path.splitext(os.path.basename(entry))[0]
        spec = importlib.util.spec_from_file_location(name, os.path.join(bundle, entry))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self.predict = getattr(module, "predict", None)
        if not callable(self.predict):
            raise AttributeError(f"{entry} does not define predict(request)")
        self.predict_batch = getattr(module, "predict_batch", None)
        init = getattr(module, "init", None)
        if init is not None:
            init()

    def capabilities(self):
        return json.dumps({"batch": self.predict_batch is not None, "journal": True}).encode()


class Worker:
    """Answers requests, one at a time, until the watchdog closes its channel."""

    def __init__(self, model, requests, replies, slot):
        self.model = model
        self.requests = requests
        self.replies = replies
        self.words = slot[:AREA].cast("Q")
        self.area = slot[AREA:]
        self.position = 0  # of the first free byte in area
        self.oldest = 0  # when the first reply in area was put there
        self.moved = False
        self.home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.watch_chdir()

    def watch_chdir(self):
        """Note when predict leaves the bundle's root, so that the next call starts there again."""
        for name in ("chdir", "fchdir"):
            real = getattr(os, name)

            def wrapper(*args, __real=real, **kwargs):
                self.moved = True
                return __real(*args, **kwargs)

            setattr(os, name, wrapper)
            if name == "fchdir":
                self.fchdir = real

    def flush(self):
        if self.position:
            write_all(self.replies, self.area[: self.position])
            self.words[GENERATION] += 1
            self.words[COMMITTED] = 0
            self.position = 0

    def reply(self, kind, ident, elapsed, payload):
        size = HEADER.size + len(payload)
        if self.position + size > len(self.area):
            self.flush()
        frame = HEADER.pack(len(payload), kind, 0, 0, ident, elapsed) + payload
        if size > len(self.area):
            write_all(self.replies, frame)
            return
        end = self.position + size
        self.area[self.position : end] = frame
        self.position = self.words[COMMITTED] = end

    def answer(self, ident, result, elapsed):
        if isinstance(result, str):
            try:
                self.reply(RESPONSE, ident, elapsed, result.encode())
                return
            except UnicodeEncodeError:
                why = b"a string with lone surrogates, which has no UTF-8"
        else:
            why = text(type(result).__name__)
        self.reply(NOT_STRING, ident, elapsed, why)

    def go_home(self):
        self.moved = False
        self.fchdir(self.home)

    def predict_one(self, ident, request):
        begun = perf_counter_ns()
        try:
            result = self.model.predict(request)
            self.answer(ident, result, perf_counter_ns() - begun)
        except BaseException as error:
            self.reply(RAISED, ident, perf_counter_ns() - begun, describe(error))
        if self.moved:
            self.go_home()

    def predict_many(self, idents, requests):
        if len(requests) > 1:
            begun = perf_counter_ns()
            try:
                results = self.model.predict_batch(requests)
                if len(results) != len(requests):
                    raise ValueError(f"predict_batch returned {len(results)} results for {len(requests)} requests")
            except BaseException:
                # One bad request must not fail its neighbours: each is asked by itself instead.
                print("predict_batch failed; its requests go to predict one at a time:", file=sys.stderr)
                traceback.print_exc()
            else:
                elapsed = perf_counter_ns() - begun
                for ident, result in zip(idents, results):
                    self.answer(ident, result, elapsed)
                if self.moved:
                    self.go_home()
                return
        for ident, request in zip(idents, requests):
            self.predict_one(ident, request)

    def serve(self):
        """The hot path: one read, a predict a frame, one write."""
        words, area, header_size = self.words, self.area, HEADER.size
        unpack, pack, now = HEADER.unpack_from, HEADER.pack, perf_counter_ns
        predict, requests, room = self.model.predict, self.requests, len(self.area)
        batch_ids, batch = [], []
        pending = b""
        while True:
            try:
                chunk = os.read(requests, READ_SIZE)
            except OSError:
                return
            if not chunk:
                return
            pending = pending + chunk if pending else chunk
            at, have = 0, len(pending)
            began = now()
            while have - at >= header_size:
                length, _kind, flags, _, ident, _ = unpack(pending, at)
                end = at + header_size + length
                if end > have:
                    if length > READ_SIZE:
                        self.flush()
                        pending = self.read_large(pending[at:], header_size + length)
                        at, end, have = 0, header_size + length, len(pending)
                    else:
                        break
                # The order of these two lines is the protocol's: claim, then look for a revocation.
                words[CLAIMED] = ident
                if ident >= words[REVOKED]:
                    self.reply(SKIPPED, ident, 0, b"")
                    at = end
                    continue
                request = pending[at + header_size : end].decode()
                at = end
                if flags & FLAG_MORE or batch:
                    batch_ids.append(ident)
                    batch.append(request)
                    words[CLAIMED] = batch_ids[0]
                    if not flags & FLAG_MORE:
                        self.predict_many(batch_ids, batch)
                        batch_ids, batch = [], []
                    began = now()
                    continue
                try:
                    result = predict(request)
                except BaseException as error:
                    ended = now()
                    self.reply(RAISED, ident, ended - began, describe(error))
                else:
                    ended = now()
                    # What answer() does, inline: a method call costs as much as a small predict.
                    if type(result) is str and result.isascii():
                        size = header_size + len(result)
                        if self.position + size <= room:
                            start = self.position
                            area[start : start + size] = (
                                pack(len(result), RESPONSE, 0, 0, ident, ended - began) + result.encode()
                            )
                            self.position = words[COMMITTED] = start + size
                        else:
                            self.answer(ident, result, ended - began)
                    else:
                        self.answer(ident, result, ended - began)
                if self.moved:
                    self.go_home()
                if at < have and not flags & FLAG_HOLD and ended - self.oldest > FLUSH_AFTER_NS:
                    self.flush()
                    self.oldest = ended
                began = ended
            pending = pending[at:]
            self.flush()
            self.oldest = now()

    def read_large(self, start, size):
        """The rest of a frame of size bytes that began with start: read in place, not by appending."""
        frame = bytearray(size)
        frame[: len(start)] = start
        view, have = memoryview(frame), len(start)
        while have < size:
            got = os.readv(self.requests, [view[have:]])
            if got == 0:
                os._exit(0)
            have += got
        view.release()
        return frame


class Zygote:
    """The process that holds the initialised model and forks; it never predicts."""

    def __init__(self, bundle, entry, start_method, channels, journal_fd):
        self.bundle = bundle
        self.entry = entry
        self.fork_after_init = start_method == "fork"
        self.channels = channels
        self.control = move_up(os.open(os.path.join(channels, "control.in"), os.O_RDONLY | os.O_CLOEXEC))
        self.report = move_up(os.open(os.path.join(channels, "control.out"), os.O_WRONLY | os.O_CLOEXEC))
        self.journal = memoryview(mmap.mmap(journal_fd, 0))
        os.close(journal_fd)
        self.model = None
        self.children = {}  # pid -> worker number

    def run(self):
        greeting = {"wire": WIRE_VERSION, "runtime": f"python {platform.python_version()}"}
        send(self.report, HELLO, payload=json.dumps(greeting).encode())
        capabilities = b'{"batch": false, "journal": true}'
        guard = None
        if self.fork_after_init:
            guard = self.guard_init()
            try:
                self.model = Model(self.bundle, self.entry)
            except BaseException as error:
                send(self.report, INIT_FAILED, payload=self.init_traceback(error))
                self.leave_with_group()
            capabilities = self.model.capabilities()
            gc.collect()
            gc.freeze()
        flush_streams()
        try:
            die_with_parent(False)
            if guard:
                os.kill(guard, signal.SIGKILL)
                os.waitpid(guard, 0)
            wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(move_up(wake_write), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            send(self.report, READY, payload=capabilities)
            self.loop(move_up(wake_read))
        except BrokenPipeError:
            pass  # the watchdog went while something was reported to it
        except BaseException:
            traceback.print_exc()
        finally:
            # The watchdog is gone, or this process cannot go on: nothing may outlive it.
            self.kill_all()
            self.leave_with_group()

    def guard_init(self):
        """A process that ends what init started, should the watchdog end before init returned.

        The kernel then ends the zygote itself, which cannot look at its channel, but no child of it.
        """
        zygote = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setpgid(0, 0)
            channel = os.dup2(self.control, 0)
            os.closerange(1, os.sysconf("SC_OPEN_MAX"))
            hang_up = select.poll()
            hang_up.register(channel, 0)
            hang_up.poll()
            os.killpg(zygote, signal.SIGKILL)
        finally:
            os._exit(0)

    def init_traceback(self, error):
        if isinstance(error, SystemExit):
            return text(f"init left the process with exit code {error.code}")
        return text("".join(traceback.format_exception(type(error), error, authors(error.__traceback__))))

    def leave(self, code):
        flush_streams()
        os._exit(code)

    def leave_with_group(self):
        """Leave, and end what init started too: the zygote leads a group of its own."""
        flush_streams()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def loop(self, wake):
        """Do what the watchdog orders until it is gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == wake:
                    try:
                        os.read(wake, 4096)
                    except BlockingIOError:
                        pass
                    self.reap()
                    continue
                frame = self.read_exactly(HEADER.size)
                if frame is None:
                    return
                _, kind, _, _, ident, slot = HEADER.unpack(frame)
                if kind == FORK:
                    self.fork(ident, slot)
                elif kind == KILL:
                    self.kill(ident)

    def read_exactly(self, size):
        data = b""
        while len(data) < size:
            chunk = os.read(self.control, size - len(data))
            if not chunk:
                return None
            data += chunk
        return data

    def fork(self, ident, slot):
        pid = os.fork()
        if pid == 0:
            try:
                self.become_worker(ident, slot)
            finally:
                os._exit(70)
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass  # the child was faster, or is gone already
        self.children[pid] = ident
        send(self.report, FORKED, ident, pid)

    def kill(self, ident):
        for pid, known in self.children.items():
            if known == ident:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except OSError:
                    pass

    def kill_all(self):
        for ident in list(self.children.values()):
            self.kill(ident)

    def reap(self):
        for pid, ident in list(self.children.items()):
            try:
                gone = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                gone = True
            if not gone:
                continue
            # While the worker is not reaped its number cannot name another group.
            self.kill(ident)
            del self.children[pid]
            try:
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                code = 0
            send(self.report, EXITED, ident, code if code >= 0 else 128 - code)

    def become_worker(self, ident, slot):
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent = os.getppid()
        die_with_parent(True)
        if os.getppid() != parent:
            os._exit(0)
        os.close(self.control)
        os.close(self.report)
        base = os.path.join(self.channels, str(ident))
        requests = move_up(os.open(base + ".in", os.O_RDONLY | os.O_CLOEXEC))
        replies = move_up(os.open(base + ".out", os.O_WRONLY | os.O_CLOEXEC))
        for name, fd in ((".stdout", 1), (".stderr", 2)):
            log = os.open(base + name, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(log, fd)
            os.close(log)
        self.offer_to_oom_killer()
        if self.model is None:
            try:
                self.model = Model(self.bundle, self.entry)
            except BaseException as error:
                send(replies, INIT_FAILED, ident, 0, self.init_traceback(error))
                self.leave(1)
        worker = Worker(self.model, requests, replies, self.journal[slot * SLOT : (slot + 1) * SLOT])
        send(replies, UP, ident, os.getpid(), self.model.capabilities())
        worker.serve()
        self.leave(0)

    def offer_to_oom_killer(self):
        """When memory runs out, the kernel takes a worker, which costs one request, before the rest."""
        try:
            with open("/proc/self/oom_score_adj", "r+") as score:
                value = min(int(score.read()) + 500, 1000)
                score.seek(0)
                score.write(str(value))
        except OSError:
            pass


def main():
    bundle, entry, start_method, channels, journal_fd = sys.argv[1:]
    sys.argv = [os.path.join(bundle, entry)]
    sys.path[0] = bundle
    os.chdir(bundle)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    Zygote(bundle, entry, start_method, channels, int(journal_fd)).run()


if __name__ == "__main__":
    main()
