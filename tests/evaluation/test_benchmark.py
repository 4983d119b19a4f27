import json
import re
from dataclasses import asdict

import pytest
import tiny
import torch
from command_line import fails, run
from paths import ROOT
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, OpenAIGPTConfig

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.commands import benchmark as command
from optimum_slicegpt.evaluation import benchmark
from optimum_slicegpt.evaluation.benchmark import Pass, Settings
from optimum_slicegpt.evaluation.speed import Phase, Ratio, Spread
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.planning.sizes import flops_per_token


SMALL = {"seqlen": 10, "new_tokens": 3, "warmup": 1, "repeats": 3}


@pytest.fixture
def models():
    dense, sliced = (tiny.build("llama", torch.float32) for _ in range(2))
    sliced.compress(tiny.paper(sparsity=0.5, dataset=tiny.calibration()))
    return {"dense": dense, "sliced": sliced}


# FLOPs


@torch.no_grad()
def counted(model, **kwargs):
    """Returns the operations of products with matrices, as PyTorch counts them while they run."""
    with FlopCounterMode(display=False) as counter:
        model(use_cache=False, **kwargs)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if str(operation) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("name", [name for name in tiny.TINY if name != "llama4_text"])  # which runs all experts
def test_flops_are_those_that_run(name):
    model = tiny.build(name)  # in float64, for which experts are ordinary products
    for _ in ("dense", "sliced"):
        assert flops_per_token(Decoder(model)) * 7 == counted(model, input_ids=tiny.tokens(1, 7))
        if model.config.model_type.startswith("sliced"):
            break
        model.compress(tiny.paper(sparsity=0.3, slice_head=True, dataset=tiny.calibration()))


@pytest.mark.parametrize("embeddings", ["narrow", "tied", "sliced"])
def test_flops_of_the_default_method(embeddings):
    model = tiny.build("llama", tie_word_embeddings=True)
    assert flops_per_token(Decoder(model)) * 7 == counted(model, input_ids=tiny.tokens(1, 7))
    config = SliceGPTConfig(sparsity=0.3, mlp_sparsity=0.4, embeddings=embeddings, dataset=tiny.calibration())
    model.compress(config)
    assert model.config.intermediate_size < 40
    assert flops_per_token(Decoder(model)) * 7 == counted(model, input_ids=tiny.tokens(1, 7))


# Measuring


def test_what_is_found(models):
    found = benchmark.benchmark(models, Settings(batch_sizes=(2, 3), **SMALL))
    assert (found.dtype, found.device, found.threads) == ("float32", "cpu", torch.get_num_threads())
    assert [(each.model, each.batch_size) for each in found.speeds] == [
        ("dense", 2), ("sliced", 2), ("dense", 3), ("sliced", 3),
    ]  # fmt: skip
    for each in found.speeds:
        model, batch = models[each.model], each.batch_size
        assert each.prefill.gflops * 1e9 == counted(model, input_ids=tiny.tokens(batch, 10), logits_to_keep=1)
        assert each.decode.gflops * 1e9 == counted(model, input_ids=tiny.tokens(batch, 1))
        assert each.prefill.tokens_per_s == pytest.approx(1e3 * batch * 10 / each.prefill.latency_ms.median)
        assert each.decode.tokens_per_s == pytest.approx(1e3 * batch / each.decode.latency_ms.median)
        assert each.weights_gib * 2**30 == 4 * model.num_parameters()
        assert each.cache_gib * 2**30 == 4 * 2 * 2 * batch * 2 * 13 * 8  # layers, keys and values, heads, tokens, dims
        assert each.peak_gib is None
        for phase in (each.prefill, each.decode):
            assert len(phase.latency_ms.repeats) == 3 and min(phase.latency_ms.repeats) > 0
    assert [(each.model, each.baseline, each.batch_size) for each in found.speedups] == [
        ("sliced", "dense", 2), ("sliced", "dense", 3),
    ]  # fmt: skip
    ratio = flops_per_token(Decoder(models["dense"])) / flops_per_token(Decoder(models["sliced"]))
    assert found.speedups[0].decode.flops == pytest.approx(ratio)
    json.dumps(asdict(found), allow_nan=False)


def test_models_take_turns_and_warming_up_does_not_count(models, monkeypatch):
    seconds = {"dense": iter([9.0, 9.0, 6.0, 2.0, 4.0]), "sliced": iter([9.0, 9.0, 2.0, 1.0, 4.0])}
    turns = []

    def time_pass(model, forward, ids, settings):
        name = next(name for name in models if models[name] is model)
        turns.append(name)
        taken = next(seconds[name])
        return Pass(prefill_s=taken, decode_s=taken / 10, cache_bytes=0, peak_bytes=2**30)

    monkeypatch.setattr(benchmark, "time_pass", time_pass)
    found = benchmark.benchmark(models, Settings(seqlen=10, new_tokens=3, warmup=2, repeats=3))
    assert turns == ["dense", "sliced", "sliced", "dense"] * 2 + ["dense", "sliced"]
    dense, sliced = found.speeds
    assert dense.prefill.latency_ms == Spread([6e3, 2e3, 4e3], median=4e3, q1=3e3, q3=5e3)
    assert sliced.decode.latency_ms.median == pytest.approx(200)
    assert dense.prefill.tokens_per_s == 2.5
    assert found.speedups[0].prefill.throughput == Spread([3, 2, 1], median=2, q1=1.5, q3=2.5)
    assert dense.peak_gib == 1 + dense.weights_gib


def test_ratios_are_of_one_model_over_another():
    own = Phase.from_seconds([1, 2], tokens=8, flops=10**9)
    other = Phase.from_seconds([3, 2], tokens=8, flops=3 * 10**9)
    assert Ratio.from_phases(own, other) == Ratio(Spread([3, 1], median=2, q1=1.5, q3=2.5), flops=3)


def test_a_pass_reads_the_prompts_and_then_a_token_at_a_time(models):
    shapes, tokens = [], []
    model = models["sliced"]
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    model.register_forward_hook(lambda module, args, output: tokens.append(output.logits.argmax(-1)))
    ids = tiny.tokens(2, 10)
    benchmark.time_pass(model, model, ids, Settings(seqlen=10, new_tokens=3))
    assert [tuple(shape) for shape in shapes] == [(2, 10), (2, 1), (2, 1), (2, 1)]
    greedy = torch.cat(tokens, dim=1)
    generated = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(greedy, generated[:, 10:])


def test_compiled_models_get_a_static_cache(models, monkeypatch):
    counter, compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile(model, fullgraph=True, backend=counter))
    torch.compiler.reset()
    found = benchmark.benchmark({"sliced": models["sliced"]}, Settings(compile=True, **SMALL))
    assert counter.frame_count == 2  # a graph to read, another to go on
    assert found.speeds[0].cache_gib * 2**30 == 4 * 2 * 2 * 2 * 13 * 8
    assert found.speedups == []


@pytest.mark.parametrize("name", ["mamba", "qwen3_next", "recurrent_gemma"])
def test_caches_of_every_kind(name):
    """State spaces and linear attention have states in place of keys and values; some models return no cache."""
    found = benchmark.benchmark({name: tiny.build(name, torch.float32)}, Settings(**SMALL | {"repeats": 2}))
    assert found.speeds[0].cache_gib > 0


def test_nothing_is_left_changed(models):
    models["dense"].train()
    before = torch.random.get_rng_state()
    benchmark.benchmark(models, Settings(**SMALL))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert models["dense"].training and not models["sliced"].training


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seqlen": 0}, "seqlen=0 must be at least 1"),
        ({"new_tokens": 0}, "new_tokens=0 must be at least 1"),
        ({"warmup": -1}, "warmup=-1 must be at least 0"),
        ({"repeats": 1}, "repeats=1 must be at least 2"),
        ({"batch_sizes": (4, 0)}, r"batch_sizes=\(4, 0\) must hold numbers of at least 1"),
        ({"batch_sizes": ()}, r"batch_sizes=\(\) must hold numbers"),
        ({"compile": True, "warmup": 0}, "warmup=0 with compile=True would measure the compiler; give at least 1"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_more_tokens_than_positions(models):
    with pytest.raises(ValueError, match="seqlen=60 and new_tokens=5 make 65 tokens, and the model has positions for"):
        benchmark.benchmark(models, Settings(seqlen=60, new_tokens=5))


def test_unlike_dtypes(models):
    models["sliced"].to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"'sliced' is on cpu in torch\.bfloat16, 'dense' on cpu in torch\.float32; mo"
    ):
        benchmark.benchmark(models, Settings(**SMALL))


# The command


QUICK = ("--batch-size", 1, 2, "--seqlen", 12, "--new-tokens", 2, "--warmup", 0, "--repeats", 2)


def test_command(cli_files, capsys, tmp_path):
    both = ("--model", cli_files / "dense", "--baseline", cli_files / "dense")
    run("benchmark", *both, *QUICK, "--dtype", "bfloat16", "--json", "--output", tmp_path / "speed.json")
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "speed.json").read_text()) == found
    assert (found["model"], found["baseline"]) == (str(cli_files / "dense"),) * 2
    assert found["settings"] == asdict(Settings((1, 2), 12, 2, warmup=0, repeats=2)) | {"batch_sizes": [1, 2]}
    assert (found["dtype"], found["device"], found["random_weights"]) == ("bfloat16", "cpu", False)
    assert [each["model"] for each in found["speeds"]] == ["baseline", "model"] * 2
    assert [each["prefill"]["flops"] for each in found["speedups"]] == [1, 1]


def test_tables(cli_files, capsys):
    run("benchmark", "--model", cli_files / "dense", "--baseline", cli_files / "dense", *QUICK)
    printed = capsys.readouterr().out
    time = r"[\d,.]+ \([\d,.]+ to [\d,.]+\)"
    assert re.search(rf"^1 +baseline +{time} +[\d,]+ +{time} +[\d,]+ +\d\.\d+$", printed, re.MULTILINE)
    assert re.search(rf"^2 +model over baseline +{time} × +1\.00 × +{time} × +1\.00 ×$", printed, re.MULTILINE)
    assert "weights + cache, GiB" in printed  # and not a peak, which a CPU does not count
    run("benchmark", "--model", cli_files / "dense", *QUICK)
    assert "over" not in capsys.readouterr().out


def test_random_weights_need_a_configuration_only(models, tmp_path, capsys):
    for name, model in models.items():
        model.config.save_pretrained(tmp_path / name)
    both = ("--model", tmp_path / "sliced", "--baseline", tmp_path / "dense")
    before = torch.random.get_rng_state()
    run("benchmark", *both, *QUICK, "--random-weights", "--dtype", "bfloat16", "--device", "cpu", "--json")
    assert torch.equal(torch.random.get_rng_state(), before)
    found = json.loads(capsys.readouterr().out)
    assert found["random_weights"] and found["dtype"] == "bfloat16"
    ratio = flops_per_token(Decoder(models["dense"])) / flops_per_token(Decoder(models["sliced"]))
    assert found["speedups"][0]["decode"]["flops"] == pytest.approx(ratio)


def test_every_setting_has_a_flag(models, tmp_path, monkeypatch):
    models["dense"].config.max_position_embeddings = 1024
    models["dense"].config.save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr(command, "benchmark", lambda models, settings: seen.append(settings) or 1 / 0)
    numbers = {"seqlen": 11, "new_tokens": 3, "warmup": 4, "repeats": 5, "seed": 6}
    flags = [part for name, number in numbers.items() for part in (f"--{name.replace('_', '-')}", number)]
    for more, expected in (
        ([], Settings()),
        ([*flags, "--batch-size", 1, 4, "--compile"], Settings(batch_sizes=(1, 4), compile=True, **numbers)),
    ):
        with pytest.raises(ZeroDivisionError):
            run("benchmark", "--model", tmp_path, "--random-weights", *more)
        assert seen.pop() == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", 1], "repeats=1 must be at least 2"),
        (["--seqlen", 64], "seqlen=64 and new_tokens=32 make 96 tokens, and the model has positions for 64"),
        (["--device", "cuda:99"], "device='cuda:99' is not available here"),
        (["--output", "no/such/folder/speed.json"], "There is no folder for --output no/such/folder/speed.json"),
        (["--output", ROOT, "--overwrite"], f"--output {ROOT} is a folder; give the name of a file"),
        (["--baseline", "no/such/model"], "no/such/model"),
    ],
)
def test_what_the_command_refuses(cli_files, capsys, monkeypatch, more, message):
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights are read")
    )
    assert message in fails(capsys, "benchmark", "--model", cli_files / "dense", *more)


def test_families_without_a_row_are_refused(tmp_path, capsys):
    OpenAIGPTConfig().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "openai-gpt"
    assert "model_type='openai-gpt'" in fails(capsys, "benchmark", "--model", tmp_path, "--random-weights")
