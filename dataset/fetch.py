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

from engine import cli, files
from engine.errors import InputError

BLOCK = 1 << 20
PAUSE = 1.0           # seconds before the second attempt; doubled with each further one, up to a minute
LOCAL = ('localhost', '127.0.0.1')
RECORD = 'downloads.json'

# Limits of what an archive may declare: the challenge's largest pictures have 20 MB, and jpg and png
# hardly shrink. Small files may shrink more: a mask of one colour does.
LARGEST_MEMBER = 1 << 29
LARGEST_RATIO, SMALL_MEMBER = 100, 1 << 20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)

RUN_AGAIN = 'run the same command again: it goes on where it stopped'


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


def _open(url, timeout, **options):
    request = urllib.request.Request(url, **options)
    return urllib.request.build_opener(_CheckedRedirects).open(request, timeout=timeout)


def remote_size(url, timeout):
    """Size in bytes that the server declares for `url`; 0 when it does not say."""
    try:
        with _open(url, timeout, method='HEAD') as response:
            return int(response.headers['Content-Length'])
    except (OSError, http.client.HTTPException, TypeError, ValueError):
        return 0


def download(url, path, timeout=30.0, retries=5, sha256='', check=None):
    """Fetch `url` into `path`, which appears when it is complete and checked, not before.

    A file that is there already is checked alike. What arrived of one that is not lies in
    `<path>.part` meanwhile; a later call goes on from there.
    timeout : seconds without a byte after which an attempt ends
    retries : int   further attempts after one that brought nothing
    sha256 : str    first hex digits that the file must have; '' = any
    check : callable of the file's path that raises InputError when it is no good
    Returns the sha256 of the file (64 hex digits). Raises InputError that says what to do; the
    partial file is kept unless its content is wrong.
    """
    path = Path(path)
    part = path if path.exists() else path.with_name(path.name + '.part')
    if part != path:
        check_url(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        _persist(url, part, timeout, retries)
    try:
        found = verify(part, sha256, url)
        if check:
            check(part)
    except InputError:
        if part != path:
            part.unlink()   # nothing to go on from
        raise
    os.replace(part, path)
    return found


def verify(path, sha256, url):
    """The sha256 of a file. Raises InputError when it does not begin with the digits `sha256`."""
    found = sha256_of(path)
    if not found.startswith(sha256):
        raise InputError('A file is not the one that it should be',
                         [f'{path}: sha256 is {found}, not {sha256}'],
                         f'remove it and run the same command again; if this remains, {url} has been '
                         f'replaced: then remove its entry in {RECORD}')
    return found


def _persist(url, part, timeout, retries):
    """Attempt until the partial file is whole; attempts that brought something do not count."""
    failures, most = 0, file_size(part)
    while reason := _attempt(url, part, timeout):
        have = file_size(part)
        failures = 0 if have > most else failures + 1
        most = max(most, have)
        if failures > retries:
            raise InputError('A download failed', [f'{url}: {reason}'],
                             f'{RUN_AGAIN}; {readable(have)} are in {part}')
        time.sleep(min(PAUSE * 2 ** failures, 60))


def _attempt(url, part, timeout):
    """Append to `part` what it lacks; returns '' when it is whole, else why it is not."""
    have = file_size(part)
    try:
        with _open(url, timeout, headers={'Range': f'bytes={have}-'} if have else {}) as response:
            if response.status != 206:
                have = 0   # the server sends the whole file
            elif not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
                part.unlink()
                return 'the server continued at another place; the file is fetched anew'
            total = have + response.length if response.length is not None else None
            require_space(part.parent, response.length or 0, part.name)
            with open(part, 'ab' if have else 'wb') as file, tqdm(
                    total=total, initial=have, unit='B', unit_scale=True, desc=part.stem) as bar:
                while block := response.read1(BLOCK):
                    file.write(block)
                    bar.update(len(block))
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:   # there is nothing beyond what we have
            if remote_size(url, timeout) == have:
                return ''
            part.unlink()
            return 'the partial file is longer than the whole; it is fetched anew'
        if error.code >= 500 or error.code in (408, 429):
            return f'HTTP {error.code} {error.reason}'
        raise InputError('A download failed', [f'{url}: HTTP {error.code} {error.reason}'],
                         'the file may have moved: look for it by hand, put it where this script '
                         'would, and run the same command again') from None
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, 'errno', None) in cli.UNWRITABLE:
            error.filename = str(part)
            raise
        return f'the connection failed: {getattr(error, "reason", error)}'
    have = file_size(part)
    return '' if total in (None, have) else f'the connection was cut after {have} of {total} bytes'


def require_space(folder, needed, what):
    """Raise InputError when fewer than `needed` bytes are free where `folder` is (or will be)."""
    folder = Path(folder).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError('There is not enough space on the disk',
                         [f'{folder}: {what}: needs {readable(needed)}, {readable(free)} are free'],
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

    def sha256(self, path):
        """The recorded hash of a file, '' where there is none."""
        return self.entries.get(path.name, {}).get('sha256', '')

    def note(self, path, url, sha256, **more):
        """Write down a file whose content has proven good."""
        self.entries[path.name] = {'url': url, 'size': file_size(path), 'sha256': sha256, **more}
        files.write_text(self.path, json.dumps(self.entries, indent=1, sort_keys=True) + '\n')


# --- Archives

def unpack(path, wanted, folder, workers=0):
    """Unpack the members of a zip archive that `wanted(file name)` accepts into one flat folder.

    Each file is complete or absent; those that are there with the right size are left alone, so
    that a run that was killed goes on. Returns the number of the chosen members.
    Raises InputError that lists every bad member; then nothing is unpacked.
    """
    remedy = 'remove the archive and run the same command again to fetch it anew'
    chosen, seen, faults = {}, set(), []
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, *DAMAGED) as error:
        raise InputError(f'{path} cannot be used', [f'{path}: {error}'], remedy) from None
    with archive:
        for member in archive.infolist():
            faults += member_faults(member)
            name = member.filename.rpartition('/')[2]
            if name and wanted(name) and not member.filename.startswith('__MACOSX/'):
                if name.casefold() in seen:
                    faults.append(f'{member.filename!r}: its name occurs twice')
                seen.add(name.casefold())
                chosen[name] = member
        if faults or not chosen:
            raise InputError(f'{path} cannot be used; nothing of it was unpacked',
                             faults or ['holds nothing of what is looked for'], remedy)
        missing = [(member, folder / name) for name, member in chosen.items()
                   if file_size(folder / name) != member.file_size]
        require_space(folder, sum(member.file_size for member, _ in missing), f'content of {path.name}')
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_abandoned(folder)
        files.for_all(lambda entry: _unpack_member(archive, *entry), missing, path.name, workers,
                      f'{path} is damaged', remedy)
    return len(chosen)


def member_faults(member):
    """What is wrong with a ZipInfo: a list of lines, empty for an honest file or folder."""
    name, size, packed = member.orig_filename, member.file_size, member.compress_size
    tests = {
        'an absolute path': name.startswith('/') or re.match('[A-Za-z]:', name),
        'a path that leads out of the folder': '..' in name.split('/'),
        'a name with odd characters': not name.isprintable() or '\\' in name,
        'a link or a device': stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR),
        'encrypted': member.flag_bits & 1,
        f'declares {readable(size)} packed in {readable(packed)}: a decompression bomb':
            size > min(LARGEST_MEMBER, max(SMALL_MEMBER, LARGEST_RATIO * packed))}
    return [f'{member.filename!r}: {fault}' for fault, found in tests.items() if found]


def _unpack_member(archive, member, target):
    try:
        with archive.open(member) as source, files.replacing(target) as temporary:
            with open(temporary, 'wb') as file:
                shutil.copyfileobj(source, file, BLOCK)   # not more than declared, and the CRC is checked
            if file_size(temporary) != member.file_size:
                raise EOFError('shorter than declared')
    except DAMAGED as error:
        raise InputError('', [f'{member.filename}: {error}']) from None
