"""Examples of the OpenAPI document, which tests/docs/test_openapi.py sends.

A request's example is answered with the response example of the same name; examples of errors are
named after their code.
"""

from __future__ import annotations

import base64

from vim_embed.http.openapi.schemas import EXAMPLE_ID, Described

_DIGEST = "sha256:" + "5c" * 32
PROVENANCE: Described = {
    "model": "vim-tiny",
    "revision": "",
    "weights_digest": _DIGEST,
    "family": "vim",
    "preprocessing_digest": _DIGEST,
    "pooling": "mean",
    "dtype": "float32",
    "backend": "cpu",
    "device": "cpu",
    "exact": "false",
    "exact_rows": "",
    "random_weights": "false",
    "version": "0.1.0",
}
MODEL: Described = {
    "name": "vim-tiny",
    "aliases": ["hustvl/Vim-tiny-midclstok"],
    "state": "ready",
    "pinned": False,
    "degraded": {},
    "reason": None,
    "kind": "vim",
    "family": "vim",
    "family_reason": "the name vim-tiny",
    "dim": 192,
    "features_dim": 192,
    "classifier": "cls",
    "dtype": "float32",
    "dtype_reason": "as set",
    "certificate": None,
    "self_check": {
        "outputs": [
            {"what": "tokens", "error": 9e-7, "tolerance": 5e-5, "image": "a saturated star"}
        ],
        "images": ["noise", "a dark sky with a source", "a saturated star"],
    },
    "device": "cpu",
    "backend": "cpu",
    "backend_reason": "C++ kernels for AVX512, cached",
    "exact_rows": 1,
    "exact_reason": "row by row",
    "weights": {
        "source": "hustvl/Vim-tiny-midclstok",
        "revision": "main",
        "file": "vim_t_midclstok_76p1acc.pth",
        "digest": _DIGEST,
        "random": False,
        "tensors": "model; not used: head",
    },
    "preprocessing": {
        "image_size": 224,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channels": "RGB",
        "resize_to": 0,
        "keep_aspect": False,
        "digest": _DIGEST,
    },
    "min_size": 16,
    "any_size": True,
    "poolings": ["mean", "cls", "patch-mean", "max", "features", "tokens"],
    "channels": 3,
    "tokens": {"grid": [14, 14], "cls": 98, "registers": [], "others": []},
    "patch_size": 16,
    "patch_stride": 16,
    "granularities": ["blocks", "residual", "leaves", "all"],
    "limits": {"max_rows": 1024, "max_body_bytes": 536870912, "batch_rows": 8},
}
READY: Described = {
    "status": "ready",
    "models": {"vim-tiny": "ready"},
    "degraded": {"cuda:1": "lost: cuda:1 is lost to this process (no answer within 5 s)"},
}
STATUS: Described = {
    "version": "0.1.0",
    "ready": True,
    "reason": None,
    "default": "vim-tiny",
    "devices": {"cuda:0": "up"},
    "degraded": {},
    "models": [MODEL],
    "queue": {"waiting_rows": 12, "capacity_rows": 4096},
    "uptime_seconds": 86.2,
    "window_seconds": 60,
    "throughput": {"rows_per_second": 31.4, "rows_each_second": [0, 24, 32, 32]},
    "batches": {"count": 11, "mean_rows": 8.0},
    "latency": {"count": 11, "p50_ms": 260.1, "p99_ms": 301.7},
    "errors": [
        {
            "code": "unknown_model",
            "status": 404,
            "message": "no model 'vim-huge' is loaded here: use one of vim-tiny",
            "route": "POST /embed",
            "request_id": EXAMPLE_ID,
            "time": "2026-01-01T12:00:00+00:00",
            "count": 1,
        }
    ],
}
# Grey ramps of 16×16 pixels, small enough to read over; a Vim takes any size.
PIXELS: Described = {
    "base64": base64.b64encode(bytes(range(256)) * 3).decode(),
    "shape": [1, 3, 16, 16],
    "dtype": "uint8",
}
CHECK: Described = {
    "model": "vim-tiny",
    "ok": True,
    "state": "ready",
    "reports": [{"error": 0.0, "tolerance": 1e-4, "same_bytes": True, "ok": True}],
}
