#!/bin/sh
# Says on stderr what doctor found in this container, then becomes the command. A finding never keeps it from starting:
# doctor's exit status is shown, and OVERLAY_QUIET=1 leaves all of this out.
if [ "${OVERLAY_QUIET:-0}" != 1 ]; then
  overlay doctor >&2
  status=$?
  [ "$status" -eq 0 ] || echo "overlay doctor: problems are listed above (exit status $status)" >&2
fi
exec "$@"
