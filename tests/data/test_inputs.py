"""Inputs are told apart by their files, whatever their names."""

import pytest

from forgetmenot.data.inputs import only_input
from forgetmenot.errors import UserError
from forgetmenot.files import write_text


def test_the_one_folder_with_the_file_is_found(tmp_path):
    inputs = {name: tmp_path / name for name in ("any", "other")}
    with pytest.raises(UserError, match=r"niah: needs exactly one input with a.json, found \[\]"):
        only_input("niah", inputs, "a.json")
    write_text(tmp_path / "other" / "a.json", "{}")
    assert only_input("niah", inputs, "a.json") == tmp_path / "other"
    write_text(tmp_path / "any" / "a.json", "{}")
    with pytest.raises(UserError, match=r"found \['any', 'other'\] among"):
        only_input("niah", inputs, "a.json")
