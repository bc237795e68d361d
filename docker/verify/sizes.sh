# shellcheck shell=bash disable=SC2154
# What the image's size is made of.
docker/size.sh vim-embed:cpu 12
