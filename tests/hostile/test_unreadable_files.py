"""Files that this user may not read are named as that, never as missing or as no model."""

import json
import os
import shutil
import subprocess
import sys

CLOSED = [
    "base/model.safetensors", "base/config.json", "base/tokenizer.json", "arm/adapter_model.safetensors",
    "arm/adapter_config.json", "base", "arm", ".",
]  # fmt: skip
CHECK = """
import json, sys
from pathlib import Path
from models.checking import check_spec
from models.errors import ModelsError
from models.spec import GenerationSpec

shelf, lines = Path(sys.argv[1]), {}
spec = GenerationSpec.parse({"base": str(shelf / "base"), "arms": [{"name": "arm", "ref": str(shelf / "arm")}]})
for closed in [*sys.argv[2:], None]:
    if closed:
        (shelf / closed).chmod(0)
    try:
        check_spec(spec, shelf.parent)
    except ModelsError as error:
        lines[closed] = str(error)
    if closed:
        (shelf / closed).chmod(0o700)
print(json.dumps(lines))
"""


def test_what_may_not_be_read_is_named(good_models, tmp_path):
    shelf = shutil.copytree(good_models, tmp_path / "shelf")
    command = [sys.executable, "-c", CHECK, str(shelf), *CLOSED]
    if os.getuid() == 0:  # whom the rights of files do not bind
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    lines = json.loads(done.stdout)
    assert lines.keys() == set(CLOSED)
    for closed, line in lines.items():
        assert f"permission denied for {shelf / closed}" in line, line
