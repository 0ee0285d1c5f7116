#!/usr/bin/python3 -IS
"""The MTA's pipe: one message from standard input into a queue, durably, or not at all.

``qrunner-inject -Q QUEUE_DIR [-q QUEUE] [-f SENDER] [-m KEY=VALUE]... [--max-size N] [--min-free N]
[--no-rcpt] [--] RCPT...``

Guarantees:
  Exit 0 comes after the file and then its directory are on stable storage. Exit 65 means "larger than
  --max-size" and nothing else. Whatever else happens, a bug and a wrong option included, is 75 and leaves
  nothing behind: an MTA keeps its message on 75 and bounces it on any other code.
  A failure's first output line is ``4.3.0 ...`` or ``5.2.3 ...``, which Postfix prefers to the exit code.
  No file is ever written over. The umask has no say.
Not guaranteed:
  An MTA that does not see the exit code (the machine dies, somebody kills us after the link) hands the same
  message in again. Where O_TMPFILE is missing, SIGKILL leaves a hidden ``.new.*`` file, swept by the runner.
Failures:
  What breaks before the first line of this file is Python's: it exits 1 or 2 where it can't start or can't
  read this file. The interpreter is named by its full path, because a missing program is then deferred; with
  ``env`` it is 127, which bounces.

This file is the whole program: it imports nothing of ours and, because a process is started for every
message, only modules that are built into the interpreter. ``qrunner.format`` is the home of the file format
repeated here; a test compares the two. Annotations are kept to what Python 3.8 can evaluate: an older Python
shall take mail too.
"""

import errno
import posix
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _hashlib

USAGE = """\
usage: qrunner-inject -Q QUEUE_DIR [-q QUEUE] [-f SENDER] [-m KEY=VALUE]...
                      [--max-size N] [--min-free N] [--no-rcpt] [--] RCPT... < message

  -Q QUEUE_DIR     the site's queue_dir
  -q QUEUE         a directory in it (default: in)
  -f SENDER        envelope sender; '' is the null sender (default: $SENDER)
  -m KEY=VALUE     metadata for the runners; may be repeated
  --max-size N     refuse a larger message for good (K, M, G; default: no limit)
  --min-free N     take nothing while less is free on the disk (default: 64M)
  --no-rcpt        the message has no recipients
  RCPT             envelope recipients (default: $ORIGINAL_RECIPIENT, $RECIPIENT)

exit: 0 durable in the queue, 65 larger than --max-size, 75 try again (everything else)
"""

TOO_LARGE, TRY_AGAIN = 65, 75
HEADER_SIZE = 73
# A message up to this size is written in one piece; a larger one goes to disk as it comes.
HELD = 1 << 20
CHUNK = 1 << 16
# Postfix gives a command 1000 s and then bounces what it brought; we say 75 before that.
TIME_LIMIT_S = 900
RESERVED = ("hold", "shunt", "bad")


class Refusal(Exception):
    """The message is not taken: why, the exit code, and the enhanced status code (RFC 3463)."""

    def __init__(self, text: str, code: int = TRY_AGAIN, status: str = "4.3.0") -> None:
        super().__init__(text)
        self.text, self.code, self.status = text, code, status


class Order:
    """What the command line asks for."""

    def __init__(self) -> None:
        self.queue_dir = ""
        self.queue = "in"
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.no_recipients = False
        self.meta: dict[str, str] = {}
        self.max_size = 0
        self.min_free = 64 << 20

    def set(self, name: str, value: str) -> None:
        """Takes one option's value as it stands."""
        if name == "-Q":
            self.queue_dir = value
        elif name == "-q":
            self.queue = queue_name(value)
        elif name == "-f":
            self.sender = "" if value == "<>" else text_of(value)
        elif name == "-m":
            key, equals, rest = text_of(value).partition("=")
            if not key or not equals or key.startswith("qrunner."):
                raise Refusal(f"-m wants KEY=VALUE, and a KEY that does not begin with qrunner.: {value}")
            self.meta[key] = rest
        elif name == "--max-size":
            self.max_size = size_of(name, value)
        elif name == "--min-free":
            self.min_free = size_of(name, value)
        else:
            raise Refusal(f"unknown option: {name}")


def parse(arguments: "list[str]") -> Order:
    """Reads the command line; options and recipients may be mixed, ``--`` ends the options."""
    order, words = Order(), iter(arguments)
    for word in words:
        if word == "--":
            order.recipients.extend(words)
        elif word == "--no-rcpt":
            order.no_recipients = True
        elif word[:1] != "-":
            order.recipients.append(word)
        else:
            if word[:2] == "--":
                name, attached, value = word.partition("=")
            else:
                name, attached, value = word[:2], word[2:], word[2:]
            if not attached:
                following = next(words, None)
                if following is None:
                    raise Refusal(f"unknown option, or one without its value: {word}")
                value = following
            order.set(name, value)
    if not order.queue_dir:
        raise Refusal("-Q QUEUE_DIR is missing")
    return order


def queue_name(name: str) -> str:
    """Returns a queue's name if it is one: anything else could lead out of the queue directory."""
    tail = name.replace("_", "0").replace("-", "0")
    legal = (
        name.isascii()
        and tail.isalnum()
        and name == name.lower()
        and "a" <= name[0] <= "z"
        and len(name) <= 64
    )
    if not legal or name in RESERVED or not name.strip("0123456789abcdef"):
        raise Refusal(f"not the name of a queue: {name}")
    return name


def size_of(option: str, text: str) -> int:
    """Turns ``64M`` into bytes."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not (digits.isascii() and digits.isdigit()):
        raise Refusal(f"{option} wants a number of bytes, or one with K, M or G behind it: {text}")
    return int(digits) << shift


def text_of(word: str) -> str:
    """An argument as UTF-8 with surrogateescape, whatever the locale's encoding."""
    if word.isascii():
        return word
    return word.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8", "surrogateescape")


def environment(name: bytes) -> "str | None":
    """A variable's value, None where it is not set."""
    value = posix.environ.get(name)
    return None if value is None else value.decode("utf-8", "surrogateescape")


def sender_of(order: Order, message: bytes) -> str:
    """The envelope sender."""
    if order.sender is not None:
        return order.sender
    sender = environment(b"SENDER")
    if sender is None:
        raise Refusal("no sender: neither -f nor $SENDER ('' would be the null sender)")
    return uncensored(sender, message, b"return-path:")


def recipients_of(order: Order, message: bytes) -> "list[str]":
    """The envelope recipients, each once."""
    words = [text_of(word) for word in order.recipients]
    if not words and not order.no_recipients:
        original = environment(b"ORIGINAL_RECIPIENT")
        if original:
            words = [uncensored(original, message, b"x-original-to:")]
        else:
            words = [environment(b"RECIPIENT") or ""]
    if not all(words):
        raise Refusal("no recipient: neither an argument nor $ORIGINAL_RECIPIENT nor $RECIPIENT")
    return list(dict.fromkeys(words))


def uncensored(address: str, message: bytes, field: bytes) -> str:
    """The address as the MTA's own header has it, if the two differ only in what local(8) censors.

    In the variable it writes some characters as ``_`` and leaves quotes off; taken as it is, a VERP address
    would name another subscriber. The MTA puts its header first, above any that came with the message.
    """
    for line in message[:CHUNK].split(b"\n"):
        if not line.strip():
            break
        if line[: len(field)].lower() == field:
            stated = line[len(field) :].strip().decode("utf-8", "surrogateescape")
            if stated[:1] == "<" and stated[-1:] == ">":
                stated = stated[1:-1]
            return stated if censored_alike(address, stated) else address
    return address


def censored_alike(censored: str, stated: str) -> bool:
    """Whether `stated` is `censored` but for quotes and for characters that the latter has as ``_``."""
    for candidate in (stated, unquoted(stated)):
        if len(candidate) == len(censored) and all(map(stands_for, censored, candidate)):
            return True
    return False


def stands_for(have: str, want: str) -> bool:
    """Whether local(8) may have written `have` where `want` was."""
    return have in ("_", want)


def unquoted(address: str) -> str:
    """The address as ``$SENDER`` has it: the quotes of RFC 5321 around a local part taken off."""
    local, at, domain = address.rpartition("@")
    if len(local) < 2 or local[0] != '"' or local[-1] != '"':
        return address
    characters = iter(local[1:-1])
    return "".join(next(characters, "") if c == "\\" else c for c in characters) + at + domain


def quoted(text: str) -> str:
    """A JSON string, as ``json.dumps`` writes it."""
    if text.isascii() and text.isprintable():
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return '"' + "".join(map(escaped, text)) + '"'


def escaped(character: str) -> str:
    """One character inside a JSON string, in ASCII."""
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "\b": "\\b"}.get(
        character
    )
    if short or " " <= character <= "~":
        return short or character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"


def envelope_line(order: Order, message: bytes, arrival_ns: int) -> bytes:
    """The file's JSON line."""
    sender = quoted(sender_of(order, message))
    recipients = ",".join(map(quoted, recipients_of(order, message)))
    line = f'{{"nonce":"{posix.urandom(8).hex()}","arrival":{arrival_ns},"sender":{sender}'
    line += f',"recipients":[{recipients}]'
    if order.meta:
        pairs = [quoted(key) + ":" + quoted(order.meta[key]) for key in order.meta]
        line += ',"meta":{' + ",".join(pairs) + "}"
    return line.encode("ascii") + b"}\n"


def become_owner(queue_dir: str) -> None:
    """Root becomes the owner of the queue directory before it touches anything; all others must be it."""
    owner = posix.stat(queue_dir)
    if posix.geteuid() == owner.st_uid:
        return
    if posix.geteuid() != 0:
        raise Refusal(f"not the owner of {queue_dir}: uid {posix.geteuid()} instead of {owner.st_uid}")
    group = owner.st_gid
    try:
        from pwd import getpwuid

        user = getpwuid(owner.st_uid)
        group = user.pw_gid
        posix.initgroups(user.pw_name, group)
    except (ImportError, KeyError):  # a user without a name, as containers have
        posix.setgroups([group])
    # The user last: once it is set, the groups can't be.
    posix.setgid(group)
    posix.setuid(owner.st_uid)


def open_directory(path: str, within: "int | None" = None) -> int:
    """Opens a directory that is one itself: a link could lead out of what the runners look at."""
    return posix.open(
        path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=within
    )


def check_room(directory: int, min_free: int) -> None:
    """Takes nothing while the disk is nearly full: what empties the queue has to write as well."""
    disk = posix.fstatvfs(directory)
    # A file system that counts no blocks has no limit to come near.
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < min_free:
        raise Refusal(f"less than {min_free} bytes free for the queue")


def check_size(size: int, max_size: int) -> None:
    """Raises the one refusal that is for good."""
    if max_size and size > max_size:
        raise Refusal(f"message larger than {max_size} bytes", TOO_LARGE, "5.2.3")


def read_some(limit: int) -> "tuple[bytes, bool]":
    """Reads standard input up to about `limit` bytes; the bytes, and whether that was the end."""
    chunks: list[bytes] = []
    size = 0
    while size < limit:
        chunk = posix.read(0, CHUNK)
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks), False


def without_from_line(message: bytes) -> bytes:
    """The message without the mbox line that local(8) puts first."""
    return message[message.find(b"\n") + 1 :] if message[:5] == b"From " else message


def create(queue: int) -> "tuple[int, str]":
    """Opens a file without a name, or where there is none such with a hidden one (returned; else '')."""
    flags, hidden = posix.O_RDWR | posix.O_CLOEXEC, ""
    # A nameless file gets its name through /proc: without it, the other way from the start.
    if hasattr(posix, "O_TMPFILE") and posix.access("/proc/self/fd", posix.F_OK):
        try:
            return posix.open(".", flags | posix.O_TMPFILE, 0o600, dir_fd=queue), hidden
        except OSError:
            # EOPNOTSUPP, EISDIR, ENOENT, EINVAL: each says "not here" on some kernel or file system. What is
            # wrong with the directory itself the next call says again.
            pass
    hidden = f".new.{posix.getpid()}.{posix.urandom(8).hex()}"
    return posix.open(
        hidden, flags | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW, 0o600, dir_fd=queue
    ), hidden


def file_mode(directory: int) -> int:
    """0600 in a directory of 0700; the group's bits too where a directory has them and shuts out others."""
    """0600 in a directory of 0700; the group's bits too where a directory has them and shuts out others."""
    mode = posix.fstat(directory).st_mode
    return 0o600 | (0 if mode & 0o007 else mode & 0o060)


def write_all(file: int, data: bytes) -> None:
    """Writes every byte, however many the kernel takes at a time."""
    written = posix.write(file, data)
    while written < len(data):
        data = data[written:]
        written = posix.write(file, data)


def sha1(data: bytes) -> "_hashlib.HASH":
    """The digest object; some builds have it only in the module that takes 2 ms to import."""
    try:
        from _sha1 import sha1 as new  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from hashlib import sha1 as new
    checksum: _hashlib.HASH = new(data)
    return checksum


def write_entry(file: int, queue: int, order: Order, message: bytes, ended: bool, line: bytes) -> str:
    """Writes the file format: header, JSON line, message; returns the id, which is the checksum."""
    if not ended:
        return spill_entry(file, queue, order, message, line)
    check_size(len(message), order.max_size)
    front = b"qrunner 1 %08d %012d " % (len(line), len(message))
    digest = str(sha1(front + line + message).hexdigest())
    write_all(file, b"%s%s\n%s%s" % (front, digest.encode("ascii"), line, message))
    return digest


def spill_entry(file: int, queue: int, order: Order, message: bytes, line: bytes) -> str:
    """As `write_entry` for a message not held in memory: the header, having its length, comes last."""
    size, chunk = 0, message
    write_all(file, b" " * HEADER_SIZE + line)
    while chunk:
        size += len(chunk)
        check_size(size, order.max_size)
        check_room(queue, order.min_free)
        write_all(file, chunk)
        chunk, _ = read_some(HELD)
    front = b"qrunner 1 %08d %012d " % (len(line), size)
    checksum, at, end = sha1(front), HEADER_SIZE, HEADER_SIZE + len(line) + size
    while at < end:
        chunk = posix.pread(file, HELD, at)
        if not chunk:
            raise Refusal("the file lost its end while it was written")
        checksum.update(chunk)
        at += len(chunk)
    digest = str(checksum.hexdigest())
    posix.lseek(file, 0, 0)
    write_all(file, b"%s%s\n" % (front, digest.encode("ascii")))
    return digest


def open_home(queue: int, digest: str) -> int:
    """The sub-directory for this id, or the queue's own directory where it is flat or a stranger is there."""
    try:
        return open_directory(digest[:2], queue)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return queue
        raise


def publish(file: int, queue: int, hidden: str, home: int, name: str) -> None:
    """Gives the synced file its name, and returns when the name is as durable as the file."""
    if hidden:
        posix.link(hidden, name, src_dir_fd=queue, dst_dir_fd=home)
    else:
        # With a directory descriptor this is linkat(2) and follows; link(2) would link what /proc has there.
        posix.link(f"/proc/self/fd/{file}", name, dst_dir_fd=home)
    try:
        posix.fsync(home)
    except BaseException:
        # Not repeated: after a failed sync the kernel may call the same pages clean.
        posix.unlink(name, dir_fd=home)
        raise


def inject(order: Order) -> None:
    """Takes the message on standard input; returns when it is durable, else raises and leaves nothing."""
    become_owner(order.queue_dir)
    queue = open_directory(order.queue_dir + "/" + order.queue)
    check_room(queue, order.min_free)
    message, ended = read_some(HELD)
    message = without_from_line(message)
    arrival_ns = time.time_ns()
    line = envelope_line(order, message, arrival_ns)
    file, hidden = create(queue)
    try:
        posix.fchmod(file, file_mode(queue))
        digest = write_entry(file, queue, order, message, ended, line)
        posix.fsync(file)
        home = open_home(queue, digest)
        signals(held=True)
        publish(file, queue, hidden, home, f"{arrival_ns:020d}+{digest}")
    finally:
        if hidden:
            remove(hidden, queue)


def remove(hidden: str, queue: int) -> None:
    """Takes the hidden name away; it is no message, so failing changes nothing."""
    try:
        posix.unlink(hidden, dir_fd=queue)
    except OSError:
        pass


def signals(held: bool) -> None:
    """Lets a polite signal, and our own alarm, end us by the exception that cleans up; later holds them off.

    Between the link and the exit there is nothing left to stop: dying there would only have the MTA bring the
    message again.
    """
    import _signal  # type: ignore[import-not-found]

    stops = (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT, _signal.SIGALRM)
    if held:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, stops)
        return
    for number in stops:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _signal.default_int_handler)
    _signal.alarm(TIME_LIMIT_S)


def fill_descriptors() -> None:
    """Sees to it that no file of ours becomes descriptor 0, 1 or 2: what is said would be written into it."""
    # Write-only, so that a closed standard input stays an error and is no empty message.
    while True:
        spare = posix.open("/dev/null", posix.O_WRONLY)
        if spare > 2:
            posix.close(spare)
            return


def say(text: str) -> None:
    """Writes to standard output and, where that is another file, to standard error; neither has to work.

    Postfix reads both through one pipe and wants the line once; a script may keep the one or the other.
    """
    data = text.encode("ascii", "backslashreplace")
    try:
        out, err = posix.fstat(1), posix.fstat(2)
        apart = (out.st_dev, out.st_ino) != (err.st_dev, err.st_ino)
    except BaseException:
        apart = True
    for descriptor in (1, 2) if apart else (1,):
        try:
            posix.write(descriptor, data)
        except BaseException:
            pass


def reason(error: BaseException) -> str:
    """What to tell the MTA's log, on one line."""
    if isinstance(error, Refusal):
        text = error.text
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted, or nothing came for too long"
    else:
        text = f"{type(error).__name__}: {error}"
    return "".join(c if c >= " " else "?" for c in text)


def main(arguments: "list[str]") -> int:
    """Runs the program; returns the exit code and raises nothing."""
    try:
        # Alone, as a person types it. Elsewhere it may be an address, and 0 would say that the mail is here.
        if arguments == ["--help"] or arguments == ["-h"]:
            posix.write(1, USAGE.encode("ascii"))
            return 0
        signals(held=False)
        fill_descriptors()
        inject(parse(arguments))
        return 0
    except Refusal as refusal:
        say(f"{refusal.status} qrunner-inject: {reason(refusal)}\n")
        return refusal.code
    except BaseException as error:
        say(f"4.3.0 qrunner-inject: {reason(error)}\n")
        return TRY_AGAIN


if __name__ == "__main__":
    # Past the interpreter's own clean-up: nothing is buffered, and nothing there may change the exit code.
    posix._exit(main(sys.argv[1:]))
