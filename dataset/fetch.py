"""Files from the network (resumed, checked, complete or absent), a record of them, safe unpacking."""
import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from engine import files
from engine.errors import InputError

BLOCK = 1 << 20
PAUSE = 1.0           # seconds before the second attempt; doubled with each further one
LONGEST_PAUSE = 60.0
LOCAL = ('localhost', '127.0.0.1')
RECORD = 'downloads.json'

# Limits of what an archive may declare: the challenge's largest pictures have 20 MB, and jpg and png
# hardly shrink. Small files may shrink more: a mask of one colour does.
LARGEST_MEMBER = 1 << 29
LARGEST_RATIO, SMALL_MEMBER = 100, 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)

RUN_AGAIN = 'run the same command again: it goes on where it stopped'


class Unreliable(Exception):
    """The connection failed in a way that another attempt may not meet."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, request, *others):
        check_url(others[-1])
        return super().redirect_request(request, *others)


def check_url(url):
    """Raise InputError unless `url` is https, or http on this machine (for tests)."""
    parts = urlsplit(url)
    if parts.scheme != 'https' and not (parts.scheme == 'http' and parts.hostname in LOCAL):
        raise InputError('An address cannot be used', [f'{url}: is not https'],
                         'addresses must begin with https://')


def remote_size(url, timeout):
    """Size in bytes that the server declares for `url`; None when it says nothing or is not there.

    Raises InputError when it says that there is no such file.
    """
    try:
        with _open(url, timeout, method='HEAD') as response:
            length = response.headers.get('Content-Length', '')
    except Unreliable:
        return None
    return int(length) if length.isdecimal() else None


def download(url, path, timeout=30.0, retries=5, sha256='', check=None):
    """Fetch `url` into `path`, which appears when it is complete and checked, not before.

    What arrived of it lies in `<path>.part` meanwhile; a later call goes on from there.
    timeout : seconds without a byte after which an attempt ends
    retries : int   further attempts after one that brought nothing
    sha256 : str    first hex digits that the file must have; '' = any
    check : callable of the partial file's path that raises InputError when it is no good
    Returns the sha256 of the file (64 hex digits). Raises InputError that says what to do; the
    partial file is kept unless its content is wrong.
    """
    check_url(url)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    _persist(url, part, timeout, retries)
    found = sha256_of(part)
    try:
        if not found.startswith(sha256):
            raise InputError('A download is not the file that it should be',
                             [f'{path.name}: sha256 is {found}, not {sha256}...'],
                             f'fetch it again; if this remains, {url} has been replaced')
        if check:
            check(part)
    except InputError:
        part.unlink()   # nothing to go on from
        raise
    os.replace(part, path)
    return found


def _persist(url, part, timeout, retries):
    """Attempt until the partial file is whole; attempts that brought something do not count."""
    failures, most = 0, file_size(part)
    while True:
        try:
            return _transfer(url, part, timeout)
        except Unreliable as error:
            have = file_size(part)
            failures = 0 if have > most else failures + 1
            most = max(most, have)
            if failures > retries:
                kept = f'; {readable(have)} are in {part}' if have else ''
                raise InputError('A download failed', [f'{url}: {error}'], RUN_AGAIN + kept) from None
            time.sleep(min(PAUSE * 2 ** failures, LONGEST_PAUSE))


def _transfer(url, part, timeout):
    """One attempt: append to `part` what it lacks. Raises Unreliable when that is not all."""
    have = file_size(part)
    response = _open(url, timeout, have)
    if response is None:   # there is nothing beyond what we have
        if remote_size(url, timeout) == have:
            return
        part.unlink(missing_ok=True)
        raise Unreliable('the partial file is longer than the whole; it is fetched anew')
    with response:
        if response.status != 206:
            have = 0   # the server sends the whole file
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            part.unlink()
            raise Unreliable('the server continued at another place; the file is fetched anew')
        total = None if response.length is None else have + response.length
        if total is not None:
            require_space(part.parent, response.length, part.name)
        try:
            with open(part, 'ab' if have else 'wb') as file, tqdm(
                    total=total, initial=have, unit='B', unit_scale=True, desc=part.stem) as bar:
                while block := _read(response):
                    file.write(block)
                    bar.update(len(block))
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in files.NO_ROOM:
                raise
            raise _no_space(part.parent, part.name, 'the disk is full') from None
    if total not in (None, file_size(part)):
        raise Unreliable(f'the connection was cut after {file_size(part)} of {total} bytes')


def _read(response):
    """The next bytes of a response, b'' at its end; raises Unreliable where the network fails."""
    try:
        return response.read1(BLOCK)
    except TimeoutError:
        raise Unreliable('the server stopped sending') from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreliable(f'the connection was cut: {error}') from None


def _open(url, timeout, first=0, method='GET'):
    """Open `url` from byte `first` on; None where it has no such byte. Raises Unreliable or InputError."""
    headers = {'Range': f'bytes={first}-'} if first else {}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        return urllib.request.build_opener(_CheckedRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and first:
            return None
        # Some servers refuse HEAD alone.
        if error.code >= 500 or error.code in (405, 408, 429) or method == 'HEAD' and error.code == 403:
            raise Unreliable(f'HTTP {error.code} {error.reason}') from None
        raise InputError('A download failed', [f'{url}: HTTP {error.code} {error.reason}'],
                         'the file may have moved: look for it by hand, put it where this script '
                         'would, and run the same command again') from None
    except TimeoutError:
        raise Unreliable(f'no answer in {timeout:g} s') from None
    except (OSError, http.client.HTTPException) as error:   # URLError is an OSError
        raise Unreliable(f'no connection: {getattr(error, "reason", error)}') from None


def require_space(folder, needed, what):
    """Raise InputError when fewer than `needed` bytes are free where `folder` is (or will be)."""
    folder = Path(folder).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _no_space(folder, what, f'needs {readable(needed)}, {readable(free)} are free')


def _no_space(folder, what, reason):
    return InputError('There is not enough space on the disk', [f'{folder}: {what}: {reason}'],
                      f'free some space, then {RUN_AGAIN}')


def readable(size):
    """Number of bytes as text: 5.8 GB, 12 kB."""
    for unit in ('B', 'kB', 'MB'):
        if size < 1000:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:.3g} GB'


def file_size(path):
    """Size in bytes; 0 where there is no file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def sha256_of(path):
    """sha256 of a file's content, 64 hex digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Record:
    """`downloads.json` of a folder: {file name: {'url', 'size', 'sha256', 'members'}}.

    The challenge publishes no hashes; what the first run met is what later runs demand.
    """

    def __init__(self, folder):
        self.path = Path(folder) / RECORD
        try:
            self.entries = files.json_object(self.path.read_text(encoding='utf-8'))
        except FileNotFoundError:
            self.entries = {}
        except ValueError as error:
            raise InputError('A record cannot be read', [f'{self.path}: {error}'],
                             'remove it; it is made anew') from None

    def sha256(self, name):
        """The recorded hash, '' where there is none."""
        return self.entries.get(name, {}).get('sha256', '')

    def note(self, path, url, sha256='', **more):
        """Write down a file; url '' = it lay there already, sha256 '' = its content is not yet proven."""
        self.entries[path.name] = {'url': url, 'size': file_size(path), 'sha256': sha256, **more}
        files.write_text(self.path, json.dumps(self.entries, indent=1, sort_keys=True) + '\n')

    def verify(self, path):
        """(url, sha256) of a file that is there. Raises InputError when another hash is recorded."""
        found, recorded = sha256_of(path), self.sha256(path.name)
        if recorded not in ('', found):
            raise InputError('A file is not the one that was recorded',
                             [f'{path}: sha256 is {found}, but {recorded} in {self.path}'],
                             f'remove {path} to fetch it again, or its entry to take it as it is')
        return self.entries.get(path.name, {}).get('url', ''), found


# --- Archives

def unpack(path, wanted, folder, workers=0):
    """Unpack the members of a zip archive that `wanted(file name)` accepts into one flat folder.

    Each file is complete or absent; those that are there with the right size are left alone, so
    that a run that was killed goes on. Returns {file name: size in bytes} of the chosen members.
    Raises InputError that lists every bad member; then nothing is unpacked.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *DAMAGED) as error:
        raise _bad_archive(path, [f'{path}: {error}']) from None
    with archive:
        chosen = _chosen(archive, path, wanted)
        missing = [(name, member) for name, member in chosen.items()
                   if file_size(folder / name) != member.file_size]
        require_space(folder, sum(member.file_size for _, member in missing), f'content of {path.name}')
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_abandoned(folder)
        files.for_all(lambda entry: _unpack_member(archive, entry[1], folder / entry[0]), missing,
                      path.name, workers, f'{path} is damaged', _REMOVE)
    return {name: member.file_size for name, member in chosen.items()}


_REMOVE = 'remove the archive and run the same command again to fetch it anew'


def _bad_archive(path, faults):
    return InputError(f'{path} cannot be used; nothing of it was unpacked', faults, _REMOVE)


def _chosen(archive, path, wanted):
    """{file name: ZipInfo} of the wanted members; all members are examined."""
    members = archive.infolist()
    faults = [f'{member.filename!r}: {fault}' for member in members for fault in member_faults(member)]
    packed = sum(member.compress_size for member in members)
    if packed > path.stat().st_size:
        faults.append(f'its members claim {packed} packed bytes, more than the file has: they overlap')
    chosen, seen = {}, set()
    for member in members:
        name = member.filename.rpartition('/')[2]
        if not name or member.filename.startswith('__MACOSX/') or not wanted(name):
            continue
        if name.casefold() in seen:
            faults.append(f'{member.filename!r}: its name occurs twice')
        seen.add(name.casefold())
        chosen[name] = member
    if not chosen:
        faults.append('holds nothing of what is looked for')
    if faults:
        raise _bad_archive(path, faults)
    return chosen


def member_faults(member):
    """What is wrong with a ZipInfo: a list of lines, empty for an honest file or folder."""
    faults, name, kind = [], member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    if name.startswith(('/', '\\')) or re.match('[A-Za-z]:', name):
        faults.append('an absolute path')
    if '..' in re.split(r'[/\\]', name):
        faults.append('a path that leads out of the folder')
    if not name.isprintable() or '\\' in name:
        faults.append('a name with odd characters')
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        faults.append('a link or a device')
    if member.flag_bits & 1:
        faults.append('encrypted')
    if member.file_size > LARGEST_MEMBER:
        faults.append(f'declares {readable(member.file_size)}')
    elif member.file_size > max(SMALL_MEMBER, LARGEST_RATIO * member.compress_size):
        faults.append(f'declares {readable(member.file_size)} packed in '
                      f'{readable(member.compress_size)}: a decompression bomb')
    return faults


def _unpack_member(archive, member, target):
    try:
        with archive.open(member) as source, files.replacing(target) as temporary:
            with open(temporary, 'wb') as file:
                shutil.copyfileobj(source, file, BLOCK)   # not more than declared, and the CRC is checked
            if file_size(temporary) != member.file_size:
                raise EOFError('shorter than declared')
    except DAMAGED as error:
        raise InputError('', [f'{member.filename}: {error}']) from None
