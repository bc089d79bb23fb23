#!/usr/bin/env bash
# Makes the image localhost/rocm-pytorch-stand-in, on which tests/deploy/test_image.py builds Dockerfile.rocm where no
# rocm/pytorch can be had. It is a minimal Debian with a CPU torch whose version file names a HIP release, so that the
# build's checks pass; no kernel of AMD's is in it. Root, buildah and debootstrap are needed, an engine is not.
#   WHEELS: a folder with a CPU wheel of torch for Debian's Python. Without it pip asks its index, whose torch may be large.
set -euo pipefail

image=localhost/rocm-pytorch-stand-in
suite=${SUITE:-bookworm}
torch=${TORCH:-torch==2.13.0}
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
work=$(mktemp -d)
container=
# shellcheck disable=SC2317  # called by trap
clean() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null
  rm -rf "$work"
}
trap clean EXIT

debootstrap --variant=minbase --include=ca-certificates,git,python3,python3-venv "$suite" "$work/root" >&2
# The certificates that this machine trusts: it may reach its index through a proxy.
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$work/root/etc/pip.conf"
rm -rf "$work/root/var/cache/apt/archives"/*.deb "$work/root/var/lib/apt/lists"/*

container=$(buildah from scratch)
buildah copy -q "$container" "$work/root" / >&2
buildah config --label stand-in="CPU torch whose version file names a HIP release" \
  --env PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
mkdir -p "$work/wheels"
# shellcheck disable=SC2016  # for the inner shell
buildah run -v "${WHEELS:-$work/wheels}:/mnt:ro" "$container" -- sh -euc '
  python3 -m venv /opt/venv
  python3 -m pip install --quiet --no-cache-dir --find-links /mnt "$1" numpy
  sed -i "s/^hip\\b.*/hip = \"7.0\"/" "$(python3 -c "import torch.version as v; print(v.__file__)")"
  python3 -c "import torch; assert torch.version.hip == \"7.0\", torch.version.hip"
' sh "$torch" >&2
buildah commit -q "$container" "$image" >/dev/null
echo "$image"
