import io
import tarfile
from pathlib import Path

import pytest

from forgetmenot.data.debian_package import read_debian_package
from forgetmenot.errors import UserError

MEMBERS = {
    "usr/share/toy/b.txt": b"second",
    "usr/share/toy/a.txt": b"first",
    "usr/share/toy/a.csv": b"table",
    "../outside.txt": b"escaped",
}


def read(pattern, options):
    return read_debian_package(
        "toy", options["version"], options["sha256"], pattern, options["archive"]
    )


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_reads_matching_files_in_order(make_deb, compression):
    found = read("usr/share/*.txt", make_deb(MEMBERS, compression))
    assert list(found.items()) == [
        ("usr/share/toy/a.txt", b"first"),
        ("usr/share/toy/b.txt", b"second"),
    ]


def test_a_file_with_a_path_outside_writes_nothing(make_deb, tmp_path):
    options = make_deb(MEMBERS)
    before = sorted(tmp_path.rglob("*"))
    assert read("*outside.txt", options) == {"../outside.txt": b"escaped"}
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_hash_names_file_and_both_hashes(make_deb):
    options = make_deb(MEMBERS)
    right, options["sha256"] = options["sha256"], "0" * 64
    with pytest.raises(UserError) as error:
        read("*", options)
    for part in ("toy_1.2-3_all.deb", right, "0" * 64):
        assert part in str(error.value)


def test_no_matching_file(make_deb):
    with pytest.raises(UserError, match=r"toy_1\.2-3_all\.deb: no file matches usr/\*\.json"):
        read("usr/*.json", make_deb(MEMBERS))


def test_what_is_no_deb_or_is_compressed_otherwise_is_refused(make_deb, tmp_path, monkeypatch):
    monkeypatch.setattr("forgetmenot.data.archive.sha256_file", lambda path: "0")
    options = make_deb(MEMBERS) | {"sha256": "0"}
    path = Path(options["archive"])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"data.tar.xz ", b"data.tar.zst"))
    with pytest.raises(UserError, match=r"found data\.tar\.zst; allowed: data\.tar, data\.tar\.gz"):
        read("*", options)
    path.write_bytes(content.replace(b"data.tar.xz ", b"other       "))
    with pytest.raises(UserError, match=r"no member data\.tar; found debian-binary, control"):
        read("*", options)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"not a \.deb"):
        read("*", options)
    with pytest.raises(UserError, match=r"absent is not a file; allowed: the \.deb of toy=1\.2-3"):
        read("*", options | {"archive": str(tmp_path / "absent")})


def test_links_are_not_followed(make_deb, monkeypatch):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    monkeypatch.setattr("forgetmenot.data.debian_package._data", lambda path: data.getvalue())
    with pytest.raises(UserError, match="no file matches"):
        read("usr/*", make_deb(MEMBERS))


def test_a_machine_without_apt_or_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get is not installed; .* in the option `archive`"):
        read_debian_package("toy", "1.2-3", "0", "*")
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho W: odd >&2\necho E: no such version >&2\nexit 100\n")
    apt.chmod(0o755)
    with pytest.raises(UserError) as error:
        read_debian_package("toy", "1.2-3", "0", "*")
    assert "cannot fetch toy=1.2-3 with apt; it said: E: no such version" in str(error.value)
    assert "option `archive`" in str(error.value)
    assert "\n" not in str(error.value)


def test_apt_downloads_the_pinned_version_into_a_folder_of_its_own(make_deb, tmp_path, monkeypatch):
    options = make_deb(MEMBERS)
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\n/bin/cp {options["archive"]} . && echo "$*" > {tmp_path}/asked\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_debian_package("toy", "1.2-3", options["sha256"], "*/a.txt")
    assert found == {"usr/share/toy/a.txt": b"first"}
    assert (tmp_path / "asked").read_text() == "-qq download toy=1.2-3\n"
