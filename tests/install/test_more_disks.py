"""Layered and journalled disks: a container's overlayfs, and an ext4 image whose power is cut while we write."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.install.support import make_bundle, make_site, modeling, overlay_text, snapshot
from tests.install.test_disks import INSTALL, privately

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare for a private mount"
)
REVERT = '$OVERLAY revert --site-packages "$1" --json'


def test_a_container_layer(site: Path, tmp_path: Path) -> None:
    """The tree lies in a lower layer, as in an image: only the replaced files and our folder are copied up."""
    before = snapshot(site)
    layers = tmp_path / "layers"
    script = (
        f'mkdir -p "{layers}"; mount -t tmpfs tmpfs "{layers}"; cd "{layers}"; mkdir upper work merged; '
        f'mount -t overlay overlay -o "lowerdir=$1,upperdir={layers}/upper,workdir={layers}/work" merged; '
        f'(cd upper; find . -type f | sort) >"{tmp_path}/empty"; '
        f'{INSTALL.replace("$1", f"{layers}/merged")} >"{tmp_path}/installed"; '
        f'(cd upper; find transformers -type f | sort) >"{tmp_path}/copied"; '
        f'{REVERT.replace("$1", f"{layers}/merged")} >"{tmp_path}/reverted"; '
        f'mkdir "{tmp_path}/after"; cp -a merged/. "{tmp_path}/after/"'
    )
    done = privately(script, site)
    if "mount" in done.stderr:
        pytest.skip(f"overlayfs cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done
    assert (tmp_path / "empty").read_text() == ""
    copied = (tmp_path / "copied").read_text().split()
    assert len(copied) >= 8
    assert [name for name in copied if not (name.startswith("transformers/models/") and name.endswith(".py"))] == []
    assert snapshot(site) == before, "the lower layer stays as it was"
    assert snapshot(tmp_path / "after") == before


WRITER = """
import os, sys
from pathlib import Path
from rocm_overlay.install import operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.fs import Fs
site, bundle, image, cuts, verb, every = sys.argv[1:]
names = ["write", "fsync", "replace", "link", "unlink", "create", "mkdir"]
count = 0
def wrap(name):
    original = getattr(Fs, name)
    def call(self, *args, **kwargs):
        global count
        result = original(self, *args, **kwargs)
        count += 1
        if count % int(every) == 0:  # the power goes now: what is in the image is all there is
            with open(image, "rb") as source, open(f"{cuts}/{count}.img", "wb") as target:
                while block := source.read(1 << 20):
                    target.write(block) if block.strip(b"\\0") else target.seek(len(block), 1)
                target.truncate(os.path.getsize(image))
        return result
    setattr(Fs, name, call)
for name in names:
    wrap(name)
options = Options(site_packages=Path(site), bundle=Path(bundle))
operations.install(options, "1.0") if verb == "install" else operations.revert(options)
"""
JUDGE = """
import sys
from pathlib import Path
from rocm_overlay.install import inspection, operations
from rocm_overlay.install.session import Options
from tests.install.support import STOCK, modeling, overlay_text
site, bundle = Path(sys.argv[1]), Path(sys.argv[2])
options = Options(site_packages=site, bundle=bundle)
operations.recover_only(options)
state = inspection.status(options).state
texts = {model: modeling(site, model).read_bytes() for model in STOCK}
overlaid = {model: overlay_text(text) for model, text in STOCK.items()}
ends = {"STOCK": STOCK, "APPLIED": overlaid}
print(state.value if ends.get(state.value) == texts else f"BAD {state.value}")
"""


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=[pytest.mark.full, pytest.mark.timeout(1800)]), pytest.param(9)]
)
@pytest.mark.parametrize("verb", ["install", "revert"])
def test_a_power_cut_on_a_real_journalled_disk(verb: str, every: int, tmp_path: Path) -> None:
    """The image behind a mounted ext4 is copied, unsynced, after our calls; each copy is mounted, healed and judged."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    bundle = make_bundle(tmp_path / "bundle")
    make_site(tmp_path / "site")
    (tmp_path / "writer.py").write_text(WRITER)
    (tmp_path / "judge.py").write_text(JUDGE)
    python = "${OVERLAY%% *}"
    options = "loop,data=writeback,noauto_da_alloc,commit=300"
    install = f'{python} "{tmp_path}/writer.py" "{tmp_path}/m" "{bundle}" d.img "{tmp_path}/cuts"'
    script = (
        f'cd "{tmp_path}"; mkdir m cuts; truncate -s 8M d.img; '
        f"mkfs.ext4 -q -F -J size=1 -b 1024 d.img; mount -o {options} d.img m; cp -a site/. m/; sync; "
        + (f"{install} install 1000000; sync; " if verb == "revert" else "")
        + f"{install} {verb} {every}; umount m; "
        f'for cut in cuts/*.img; do mount -o {options} "$cut" m; {python} judge.py "{tmp_path}/m" "{bundle}"; '
        "umount m; done"
    )
    done = privately(script, tmp_path / "site")
    if "mount" in done.stderr:
        pytest.skip(f"a loop device cannot be mounted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done
    ends = done.stdout.split("\n")[:-1]
    assert len(ends) > (40 if every == 1 else 4)
    assert [end for end in ends if end.startswith("BAD")] == []
    assert set(ends) <= {"STOCK", "APPLIED"}


def test_the_judge_of_cuts_sees_a_mixed_tree(tmp_path: Path) -> None:
    site, bundle = make_site(tmp_path / "site"), make_bundle(tmp_path / "bundle")
    modeling(site, "one").write_bytes(overlay_text(modeling(site, "one").read_bytes()))
    (tmp_path / "judge.py").write_text(JUDGE)
    done = privately(f'${{OVERLAY%% *}} "{tmp_path}/judge.py" "$1" "{bundle}"', site)
    assert done.stdout == "BAD FOREIGN\n"
