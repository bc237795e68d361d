"""Which family a checkpoint is of: decided by those who know, recorded, and refused in doubt."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support.fixtures_vim import DATA, RELATIVES, load_arrays, load_fixture, relative_l2
from support.fixtures_vim import raw_checkpoint as raw
from vim_embed import load_model
from vim_embed.errors import WeightsError
from vim_embed.models.vim import VimConfig, init_random
from vim_embed.weights.catalogue import CATALOGUE, ModelArgumentError, parse_model
from vim_embed.weights.families import ARCHITECTURES, FAMILIES, told_family, told_size
from vim_embed.weights.load import load_entry

MICRO = raw("vim_micro")
LONG = "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed"


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def with_args(model: str) -> dict[str, Any]:
    return {"model": MICRO["model"], "args": argparse.Namespace(model=model, input_size=64)}


@pytest.mark.parametrize("name", RELATIVES)
def test_every_fixture_loads_as_what_it_is(name: str) -> None:
    model = load_model("mine", DATA / f"{name}.pth", device="cpu")
    expected = load_arrays(name)
    assert relative_l2(model.embed(expected["pixel_values"]), expected["mean"]) < 1e-5
    assert model.info.family == RELATIVES[name]
    assert model.info.family_reason
    assert model.info.classifier == FAMILIES[RELATIVES[name]].classifier


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("fastvim_pooled", "pools tokens inside the scan"),
        ("videomamba_video", "video model"),
    ],
)
@pytest.mark.parametrize("word", ["", "vim:", "videomamba:", "fastvim:"])
def test_near_relatives_are_refused(file: str, says: str, word: str) -> None:
    with pytest.raises(WeightsError, match=says):
        load_model("mine", f"{word}{DATA / file}.pth", device="cpu")


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (f"{LONG}_with_midclstok_div2", "vim"),
        (f"{LONG}_with_middle_cls_token_div2", "vim"),
        ("vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
         "vim"),
        (f"{LONG}_with_midclstok", "vim-sum"),
        (f"{LONG}_with_cls_token_div2", "vim-front"),
        (f"{LONG}_with_cls_token", "vim-front-sum"),
        (f"{LONG}_with_noclstok_div2", "vim-nocls"),
        (f"{LONG}", "vim-nocls-sum"),
        (f"{LONG}_rope_also_residual_with_cls_token", "vim-rope-front-sum"),
        (f"{LONG}_rope_also_residual_with_cls_token_div2", "vim-rope-front"),
        (f"{LONG}_rope_also_residual", "vim-rope-nocls-sum"),
        ("vim_micro", "vim"),
        ("videomamba_tiny", "videomamba"),
        ("mambar_base_patch16_224", "mamba-reg"),
        ("vim_tiny_patch16_224", None),
        (f"{LONG}_with_registers", None),
        (f"{LONG}_if_bidirectional_with_midclstok_div2", None),
        ("deit_small_patch16_224", None),
    ],
)  # fmt: skip
def test_names_of_training_scripts(model: str, family: str | None) -> None:
    found = told_family(model)
    assert (found.name if found else None) == family


@pytest.mark.parametrize("model", ["deit_tiny", f"{LONG}_with_registers", "vim_tiny_patch16_224"])
def test_a_name_that_tells_nothing_is_in_doubt(model: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", with_args(model))
    with pytest.raises(WeightsError, match=f"may be any of vim, .*'{model}' is no name"):
        load_model("mine", path, device="cpu")
    assert load_model("mine", f"vim-front:{path}", device="cpu").info.family == "vim-front"


def test_a_form_that_no_module_computes_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", with_args(f"{LONG}_rope_also_residual_with_midclstok"))
    with pytest.raises(WeightsError, match=r"vim-rope-sum .* not computed here"):
        load_model("mine", path, device="cpu")


@pytest.mark.parametrize("content", [MICRO["model"], {"model": MICRO["model"]}])
def test_in_doubt_nothing_is_guessed(content: object, tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", content)
    with pytest.raises(WeightsError, match=r"vim, vim-sum, .*videomamba.*NAME=vim:PATH"):
        load_model("mine", path, device="cpu")
    fixture = load_fixture("vim_micro")
    said = load_model("mine", f"vim:{path}", device="cpu")
    assert relative_l2(said.embed(fixture.pixel_values), fixture.mean) < 1e-5
    assert (said.info.family, said.info.family_reason) == ("vim", "your setting")
    other = load_model("mine", f"videomamba:{path}", device="cpu")
    assert relative_l2(other.embed(fixture.pixel_values), fixture.mean) > 1e-1


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("vim_t_midclstok_76p1acc.pth", "vim"),
        ("vim_t_midclstok_ft_78p3acc.pth", "vim"),
        ("videomamba_t16_in1k_res224.pth", "videomamba"),
        ("videomamba_s16_in1k_res224to448to576.pth", "videomamba"),
    ],
)
def test_published_names(file: str, family: str, tmp_path: Path) -> None:
    path = saved(tmp_path / file, {"model": MICRO["model"]})
    info = load_model("mine", path, device="cpu").info
    assert info.family == family
    assert file in info.family_reason


def test_tensors_that_tell(tmp_path: Path) -> None:
    head = {"distill_head.0.weight": torch.ones(64)}
    path = saved(tmp_path / "x.pth", {"model": {**MICRO["model"], **head}})
    info = load_model("mine", path, device="cpu").info
    assert (info.family, info.family_reason) == ("videomamba", "its distillation head")
    rope = raw("vim_rope_micro")["model"]
    info = load_model("mine", saved(tmp_path / "r.pth", rope), device="cpu").info
    assert info.family == "vim-rope-front-sum"


@pytest.mark.parametrize(
    ("word", "model", "says"),
    [
        ("videomamba", f"{LONG}_with_midclstok_div2", "says videomamba, but its args.model"),
        ("vim", "videomamba_small", "says vim, but its args.model"),
        ("mamba-reg", "vim_micro", "says mamba-reg, but its tensors are those of vim or"),
        ("vim-nocls", "vim_micro", "says vim-nocls, but its tensors"),
    ],
)
def test_contradictions(word: str, model: str, says: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", with_args(model))
    with pytest.raises(WeightsError, match=says):
        load_model("mine", f"{word}:{path}", device="cpu")


def of_shape(dim: int, depth: int) -> dict[str, torch.Tensor]:
    """The released form, seeded, of 2 × 2 patches."""
    vim = FAMILIES["vim"].module(VimConfig(dim=dim, depth=depth, image_size=32))
    init_random(vim, seed=0)
    return dict(vim.state_dict())


SMALL_NAME = "vim_small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


@pytest.mark.parametrize(
    ("args", "file", "says"),
    [
        ({"model": SMALL_NAME}, "x.pth",
         rf"args.model '{SMALL_NAME}' says small, but the shape .*192 wide, 24 deep\) says tiny"),
        ({"model": "vim_base"}, "x.pth", r"'vim_base' says base, but .* says tiny"),
        ({}, "vim_s_midclstok_80p5acc.pth", r"name of its file \(vim_s_.*says small, but .* tiny"),
    ],
)  # fmt: skip
def test_names_of_another_size_than_the_tensors(
    args: dict[str, str], file: str, says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / file, {"model": of_shape(192, 24), "args": args})
    with pytest.raises(WeightsError, match=says):
        load_model("mine", path, device="cpu")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("vim_t_midclstok_76p1acc.pth", {"args": {"model": SMALL_NAME}},
         r"name of its file \(vim_t_.* says tiny, but its args.model 'vim_small_.* says small"),
        ("vim_t_midclstok_76p1acc.pth", {"args": {"model": f"{LONG}_with_cls_token"}},
         r"its file \(vim_t_.* says vim, but its args.model .* says vim-front-sum"),
        ("videomamba_t16_in1k_res224.pth", {"args": {"model": "vim_tiny"}},
         r"its file \(videomamba_t16.* says videomamba, but its args.model 'vim_tiny' says vim"),
        ("x.pth", {"args": {"model": "vim_tiny", "arch": "videomamba_tiny"}},
         r"its args.model 'vim_tiny' says vim, but its args.arch 'videomamba_tiny' says video"),
        ("x.pth", {"args": {"model": "vim_tiny"}, "hyper_parameters": {"model_name": "vim_small"}},
         r"args.model 'vim_tiny' says tiny, but its hyper_parameters.model_name .* says small"),
        ("x.pth", {"args": {"model": "vim_micro", "input_size": 64, "img_size": 128}},
         r"its args.input_size says images of 64 pixels, but its args.img_size says 128"),
    ],
)  # fmt: skip
def test_names_that_contradict_each_other(
    file: str, content: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / file, {"model": MICRO["model"], **content})
    with pytest.raises(WeightsError, match=says):
        load_model("mine", path, device="cpu")


def test_contradictions_of_safetensors_metadata(tmp_path: Path) -> None:
    names = {"model": "vim_tiny", "arch": "videomamba_tiny"}
    save_file(MICRO["model"], tmp_path / "x.safetensors", metadata=names)
    with pytest.raises(WeightsError, match=r"metadata.model 'vim_tiny'.* its metadata.arch 'video"):
        load_model("mine", tmp_path / "x.safetensors", device="cpu")


def test_names_that_agree_are_all_named(tmp_path: Path) -> None:
    """A run's own name beside the model's tells nothing, and contradicts nothing."""
    names = {"model": "vim_tiny", "arch": f"{LONG}_with_midclstok_div2", "model_name": "run 17"}
    content = {"model": of_shape(192, 24), "args": names}
    path = saved(tmp_path / "vim_t_midclstok_76p1acc.pth", content)
    reason = load_model("vim-tiny-mine", path, device="cpu").info.family_reason
    assert reason == (
        "the name of its file (vim_t_midclstok_76p1acc.pth) and its args.model 'vim_tiny' and its "
        f"args.arch '{LONG}_with_midclstok_div2'"
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vim_tiny_patch16_224", "tiny"),
        ("hustvl/Vim-base-midclstok", "base"),
        ("vim_s_midclstok_80p5acc.pth", "small"),
        ("videomamba_m16_in1k_res224.pth", "middle"),
        ("mambar_large_patch16_224.pth", "large"),
        ("vim_micro", None),
        ("vim_tinyish", None),
        ("OpenGVLab/VideoMamba", None),
    ],
)
def test_sizes_of_names(name: str, size: str | None) -> None:
    assert told_size(name) == size


def test_a_catalogue_name_is_a_word_too(tmp_path: Path) -> None:
    """`vim-tiny=PATH` says the released form; a file that says otherwise is refused."""
    path = saved(tmp_path / "x.pth", with_args("videomamba_tiny"))
    with pytest.raises(WeightsError, match=r"vim-tiny says vim, but its args\.model"):
        load_model("vim-tiny", path, device="cpu")


@pytest.mark.parametrize(
    ("told", "size", "stride"),
    [
        ({"input_size": 64}, 64, 16),
        ({"img_size": (3, 64, 64)}, 64, 16),
        ({"input_size": 40}, 40, 8),  # patches of 16 that overlap by half
        ({"input_size": 71}, 71, 16),  # seven pixels at the edge are in no patch
        ({"input_size": (3, 64, 48)}, 64, 16),  # no square: the tensors alone tell
        ({"input_size": 224}, None, None),
        ({"input_size": 100}, None, None),  # four patches side by side would leave gaps
        ({"input_size": 8}, None, None),
    ],
)
def test_the_size_that_a_file_tells(
    told: dict[str, Any], size: int | None, stride: int | None, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.pth", {"model": MICRO["model"], "args": told})
    if size is None:
        with pytest.raises(WeightsError, match=r"images of \d+ pixels.* no grid of 4 × 4"):
            load_model("mine", f"vim:{path}", device="cpu")
    else:
        model = load_model("mine", f"vim:{path}", device="cpu")
        config: Any = model.module.config
        assert (config.image_size, config.stride) == (size, stride)
        assert model.embed(torch.zeros(1, 3, size, size).numpy(), "tokens").shape[1] == 17


def test_one_computation_under_two_names_is_no_contradiction(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", with_args("videomamba_tiny"))
    info = load_model("mine", f"vim-front-sum:{path}", device="cpu").info
    assert info.family == "vim-front-sum"
    assert "args.model" in info.family_reason


def test_a_mae_without_its_decoder(tmp_path: Path) -> None:
    """Its class row of pos_embed stays first: read in sequence order it is another model."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(DATA / "fastvim_mae_micro.pth", weights_only=True)
    encoder = {k: v for k, v in content["state_dict"].items() if "decoder" not in k}
    del encoder["backbone.mask_token"]
    path = saved(tmp_path / "x.ckpt", encoder)
    with pytest.raises(WeightsError, match="may be any of fastvim, fastvim-mae"):
        load_model("mine", path, device="cpu")
    model = load_model("mine", f"fastvim-mae:{path}", device="cpu")
    expected = load_arrays("fastvim_mae_micro")
    assert relative_l2(model.embed(expected["pixel_values"]), expected["mean"]) < 1e-5
    encoder["backbone.pos_embed"][0, 0] = 0  # as its authors fix it
    model = load_model("mine", saved(path, encoder), device="cpu")
    assert (model.info.family, "row 0" in model.info.family_reason) == ("fastvim-mae", True)


def test_angles_of_another_rotation_are_refused(tmp_path: Path) -> None:
    content = raw("vim_rope_micro")
    content["model"]["rope.freqs_sin"] = content["model"]["rope.freqs_sin"] * 0.5
    with pytest.raises(WeightsError, match="angles"):
        load_model("mine", saved(tmp_path / "x.pth", content), device="cpu")


def test_words_before_the_colon() -> None:
    path = DATA / "vim_micro.pth"
    entry = parse_model(f"mine=mamba-reg+ema:{path}")
    assert (entry.family, entry.copy, entry.path) == ("mamba-reg", "ema", path)
    entry = parse_model("mine=vim-front:org/repo@v1:a.pth")
    assert (entry.family, entry.repo, entry.file) == ("vim-front", "org/repo", "a.pth")
    with pytest.raises(
        ModelArgumentError, match="'resnet' before the colon is no family: use one of vim, "
    ):
        parse_model(f"mine=resnet:{path}")


def test_catalogue_entries_have_an_architecture_each() -> None:
    for name, (family, config) in ARCHITECTURES.items():
        assert CATALOGUE[name].architecture == name
        with torch.device("meta"):
            assert family.module(config).dim == config.dim
    assert CATALOGUE["videomamba-middle-448"].file == "videomamba_m16_in1k_res224to448.pth"
    assert CATALOGUE["mamba-reg-base"].repo is None
    with pytest.raises(WeightsError, match="mamba-reg-base=PATH"):
        load_entry(
            CATALOGUE["mamba-reg-base"],
            device=torch.device("cpu"), dtype=torch.float32, backend="auto",
        )  # fmt: skip


def test_names_keep_what_they_are_of(tmp_path: Path) -> None:
    """A renamed copy of a file that says nothing is in doubt."""
    copy = shutil.copy(DATA / "videomamba_micro.pth", tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="nothing in it tells"):
        load_model("mine", copy, device="cpu")
