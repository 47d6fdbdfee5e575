"""Downloads from a server on this machine: everything that breaks on the way; hostile archives."""
import contextlib
import errno
import hashlib
import io
import re
import shutil
import stat
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dataset import fetch
from dataset.download import is_picture
from engine.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Serves server.files {path: bytes}; what goes wrong is set on the server.

    cut : bytes of a body after which the connection closes, once; down : answer 503
    ranges : whether Range is understood; stall : seconds of silence before a body
    redirect : address to answer with
    """
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        server, name = self.server, self.path.lstrip('/')
        server.log.append((self.command, name, self.headers.get('Range')))
        if server.redirect:
            self.answer(302, {'Location': server.redirect})
        elif server.down or name not in server.files:
            self.answer(503 if server.down else 404)
        else:
            self.send_file(server.files[name])

    def send_file(self, body):
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start, total = int(asked[1]) if asked and self.server.ranges else 0, len(body)
        if start and start >= total:
            self.answer(416)
        elif start:
            place = f'bytes {start + self.server.shift}-{total - 1}/{total}'
            self.answer(206, {'Content-Range': place}, body[start:])
        else:
            self.answer(200, {}, body)

    do_HEAD = do_GET

    def answer(self, status, headers=(), body=b''):
        server = self.server
        self.send_response(status)
        for name, value in {**dict(headers), 'Content-Length': len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == 'HEAD' or status >= 300:
            return
        time.sleep(server.stall)
        if server.cut:
            body, server.cut, server.down = body[:server.cut], 0, True
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(files):
    """A running server of {path: bytes} on this machine; its address is server.url."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.files, server.log = files, []
    server.cut = server.stall = server.shift = 0
    server.down, server.ranges, server.redirect = False, True, ''
    server.url = f'http://127.0.0.1:{server.server_port}/'
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, 'PAUSE', 0.0)
    monkeypatch.setenv('no_proxy', '*')
    with serving({'file.bin': CONTENT}) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'new' / 'file.bin'


def part_of(path):
    return path.with_name(path.name + '.part')


def get(server, path, **options):
    return fetch.download(server.url + 'file.bin', path, **{'retries': 0, 'timeout': 5.0} | options)


# --- One file

def test_a_file_arrives_whole_with_its_hash(server, path):
    found = get(server, path, sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
    assert path.read_bytes() == CONTENT and found == fetch.sha256_of(path)
    assert list(path.parent.iterdir()) == [path]
    assert fetch.remote_size(server.url + 'file.bin', 5) == len(CONTENT)


def test_after_a_cut_the_next_run_asks_for_the_rest_alone(server, path):
    server.cut = 100_000
    with pytest.raises(InputError, match='HTTP 503(.|\n)*run the same command again.*100 kB are in'):
        get(server, path)
    assert not path.exists() and part_of(path).read_bytes() == CONTENT[:100_000]
    server.down, server.log[:] = False, []
    get(server, path)
    assert path.read_bytes() == CONTENT and not part_of(path).exists()
    assert server.log == [('GET', 'file.bin', 'bytes=100000-')]


def test_a_cut_is_overcome_within_one_run(server, path, monkeypatch):
    server.cut = 100_000
    monkeypatch.setattr(fetch.time, 'sleep', lambda seconds: setattr(server, 'down', False))
    get(server, path, retries=1)
    assert path.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_from_zero(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(b'something else')
    server.ranges = False
    get(server, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_continues_elsewhere_is_not_believed(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:1000])
    server.shift = 5
    get(server, path, retries=1)
    assert path.read_bytes() == CONTENT
    assert [entry[2] for entry in server.log] == ['bytes=1000-', None]


@pytest.mark.parametrize('there', [CONTENT, CONTENT + b'more'])
def test_a_partial_file_that_is_complete_or_too_long(server, path, there):
    path.parent.mkdir()
    part_of(path).write_bytes(there)
    get(server, path, retries=1)
    assert path.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_of_it_stays(server, path):
    with pytest.raises(InputError, match='file.bin.part: sha256 is .{64}, not 0000'):
        get(server, path, sha256='0000')
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_not_there_is_said_at_once(server, path):
    with pytest.raises(InputError, match=r'none.zip: HTTP 404'):
        fetch.download(server.url + 'none.zip', path)
    assert len(server.log) == 1 and fetch.remote_size(server.url + 'none.zip', 5) == 0


def test_a_slow_server_ends_in_a_message(server, path):
    server.stall = 1.0
    with pytest.raises(InputError, match='timed out'):
        get(server, path, timeout=0.1)


def test_no_server_ends_in_a_message(server, path):
    with pytest.raises(InputError, match='the connection failed: .*refused'):
        fetch.download('http://127.0.0.1:9/file.bin', path, retries=1)


def test_a_full_disk_keeps_what_has_arrived(server, path, monkeypatch):
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match='needs 300 kB, 1 kB are free'):
        get(server, path)
    monkeypatch.undo()
    monkeypatch.setattr(fetch, 'BLOCK', 4096)
    monkeypatch.setattr(fetch.tqdm, 'update', fill_the_disk)
    with pytest.raises(OSError, match='No space left on device.*file.bin.part'):   # see cli.launch
        get(server, path)
    assert CONTENT.startswith(part_of(path).read_bytes()) and fetch.file_size(part_of(path)) == 4096
    monkeypatch.undo()
    get(server, path)
    assert path.read_bytes() == CONTENT


def fill_the_disk(_bar, _count):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('url', ['http://example.com/a', 'file:///etc/passwd', 'ftp://localhost/a', 'a'])
def test_only_https_is_followed_also_by_redirects(server, path, url):
    with pytest.raises(InputError, match='is not https'):
        fetch.download(url, path)
    if '://' in url:
        server.redirect = url
        with pytest.raises(InputError, match='is not https|not allowed'):
            get(server, path)


def test_redirects_keep_the_range(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:1000])
    with serving(server.files) as other:
        server.redirect = other.url + 'file.bin'
        get(server, path)
    assert path.read_bytes() == CONTENT and other.log == [('GET', 'file.bin', 'bytes=1000-')]


# --- Archives

def zipped(entries):
    """A zip file's bytes from [(name or ZipInfo, bytes)]."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def link(name, target='/etc/passwd'):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


def declare(data, size):
    """Overwrite the unpacked size that the central directory declares for the last member."""
    place = data.rindex(b'PK\x01\x02') + 24
    return data[:place] + size.to_bytes(4, 'little') + data[place + 4:]


HONEST = ('d/ISIC_1.jpg', b'picture')
HOSTILE = {
    'out of the folder': zipped([HONEST, ('../ISIC_2.jpg', b'x')]),
    'an absolute path': zipped([HONEST, ('/tmp/ISIC_2.jpg', b'x')]),
    'absolute path': zipped([HONEST, ('C:/ISIC_2.jpg', b'x')]),
    'odd characters': zipped([HONEST, ('..\\ISIC_2.jpg', b'x')]),
    'a link or a device': zipped([HONEST, link('ISIC_2.jpg')]),
    'a decompression bomb': zipped([HONEST, ('readme.txt', bytes(20_000_000))]),
    'declares 4 GB': declare(zipped([HONEST, ('ISIC_2.jpg', b'x')]), 4_000_000_000),
    'its name occurs twice': zipped([HONEST, ('e/isic_1.jpg', b'other')]),
    'nothing of what is looked for': zipped([('ISIC_1_superpixels.png', b'x'), ('a.csv', b'x')]),
    'not a zip file': b'<html>log in first</html>',
}


@pytest.mark.parametrize('complaint', HOSTILE)
def test_hostile_archives_are_refused_whole(tmp_path, complaint):
    (tmp_path / 'a.zip').write_bytes(HOSTILE[complaint])
    with pytest.raises(InputError, match=f'{complaint}(.|\n)*Remedy'):
        fetch.unpack(tmp_path / 'a.zip', is_picture, tmp_path / 'out' / 'in')
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']


def test_all_bad_members_are_listed(tmp_path):
    (tmp_path / 'a.zip').write_bytes(zipped([HONEST, ('../a', b''), ('/b', b''), link('c')]))
    with pytest.raises(InputError) as error:
        fetch.unpack(tmp_path / 'a.zip', is_picture, tmp_path / 'out')
    assert len(error.value.faults) == 3


@pytest.mark.parametrize('spoil, complaint', [
    (lambda data: data.replace(b'picture', b'p1cture'), 'ISIC_1.jpg: Bad CRC-32'),
    (lambda data: declare(data, 5_000), 'd/ISIC_1.jpg: shorter than declared'),
    (lambda data: data[:30], 'not a zip file')])
def test_damaged_archives_leave_no_half_file(tmp_path, spoil, complaint):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:   # stored, so that its bytes can be found
        archive.writestr(*HONEST)
    (tmp_path / 'a.zip').write_bytes(spoil(file.getvalue()))
    with pytest.raises(InputError, match=complaint):
        fetch.unpack(tmp_path / 'a.zip', is_picture, tmp_path / 'out')
    assert not list(tmp_path.glob('out/*'))
