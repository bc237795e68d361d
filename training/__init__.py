"""Trains `vim-micro`, a small Vim that shows the package at work without a download.

Not part of the wheel. README.md has the one command. scan: the selective scan with a backward pass.
native: the gradients of a block on a CPU. chunks: a batch's loss, some images at a time. data: the
pictures. views: two views of a source. shape: the pretext task. train: the steps. evaluate: the
figures of the held-out region. card: the model card.
"""
