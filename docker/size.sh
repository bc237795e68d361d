#!/bin/bash
# What makes up an image's size: its layers, then what is in site-packages, largest first, in MB.
#   docker/size.sh vim-embed:gpu [LINES]
set -euo pipefail
image=${1:?usage: docker/size.sh IMAGE [LINES]}
docker image inspect "$image" --format "$image: {{.Size}}" |
    awk '{printf "%s %d MB\n", $1, $2 / 1e6}'
echo "layers"
docker history --no-trunc --human=false --format '{{.Size}} {{.CreatedBy}}' "$image" |
    awk '$1 > 5e5 {size = $1; $1 = ""; printf "%8d %s\n", size / 1e6, substr($0, 1, 90)}'
echo "site-packages"
docker run --rm --network none --entrypoint sh "$image" -c '
    cd /opt/vim-embed/lib/python3*/site-packages
    du -s --block-size=1000000 --exclude=__pycache__ -- *
    [ ! -d nvidia ] || (du -s --block-size=1000000 -- nvidia/*; du -s --block-size=1000000 -- nvidia/cu*/*/*)' |
    sort -rn | head -"${2:-20}" | awk '{printf "%8d %s\n", $1, $2}'
