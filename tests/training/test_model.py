"""The PyTorch model equals transformers on every family, and itself: cached, packed, chunked, compiled."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from ranks import alone
from torch.nn.attention import flex_attention as flex
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import model as module
from llama.formats.huggingface_rope import rope_json
from llama.formats.rope import rope_frequencies, rope_magnitude
from model import IGNORE, Cache, Config, Llama, RopeScaling, ffn_hidden_dim
from training.models import make_model
from training.options import Options
from training.recomputing import recompute

TINY = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 101, "max_seq_len": 128}
FAMILIES = {
    "Llama 2": Config(**TINY, tied=False),
    "Llama 2, eps 1e-6": Config(**TINY, tied=False, norm_eps=1e-6),
    "Code Llama": Config(**TINY, tied=False, rope_theta=1e6),
    "Llama 3": Config(**TINY, tied=False, n_kv_heads=2, rope_theta=5e5),
    "Llama 3.1": Config(
        **TINY,
        tied=False,
        n_kv_heads=2,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_seq_len=64),
    ),
    "Llama 3.2": Config(
        **TINY,
        tied=True,
        n_kv_heads=1,
        head_dim=24,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, original_max_seq_len=64),
    ),
    "linear scaling": Config(**TINY, rope_scaling=RopeScaling("linear", 4.0)),
    "YaRN": Config(**TINY, rope_scaling=RopeScaling("yarn", 4.0, original_max_seq_len=32)),
    "YaRN, another magnitude": Config(
        **TINY,
        rope_theta=500.0,
        rope_scaling=RopeScaling("yarn", 2.5, original_max_seq_len=48, attention_factor=1.3),
    ),
}


def tokens(batch: int = 2, length: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


def fresh(config: Config, seed: int = 0) -> Llama:
    """A model whose logits and attention are not near zero, as they are after initialisation."""
    torch.manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """wq or wk with the pairs (2 j, 2 j + 1) of each head at (j, j + d / 2), as Hugging Face has them."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def in_transformers(model: Llama) -> transformers.LlamaForCausalLM:
    """The same model in transformers, built from our weights."""
    c = model.config
    rope = {"rope_theta": c.rope_theta, **(rope_json(c.rope_scaling) or {"rope_type": "default"})}
    config = transformers.LlamaConfig(
        hidden_size=c.dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.hidden_dim,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_seq_len,
        rms_norm_eps=c.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=c.tied,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    names = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for name, value in model.state_dict().items():
        if "wq" in name or "wk" in name:
            value = halves(value, c.n_heads if "wq" in name else c.n_kv_heads)
        for ours, other in names.items():
            name = name.replace(ours, other)
        name = name.replace("tok_embeddings", "embed_tokens")
        state["lm_head.weight" if name == "output.weight" else f"model.{name}"] = value
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family):
    model = fresh(FAMILIES[family]).eval()
    expected = in_transformers(model)(tokens()).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-5)


def test_llama_3_1_frequencies_equal_metas_formula():
    config = Config(dim=4096, n_heads=32, rope_theta=5e5, rope_scaling=RopeScaling())
    for j, frequency in enumerate(rope_frequencies(config).tolist()):
        plain = 5e5 ** (-2 * j / 128)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192 / 1:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert frequency == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize(
    ("theta", "fields"),
    [
        (1e4, {"factor": 16.0, "original_max_seq_len": 4096}),  # Yarn-Llama-2
        (1e6, {"factor": 4.0, "original_max_seq_len": 32768}),
        (5e5, {"factor": 8.0, "original_max_seq_len": 8192, "beta_fast": 64.0, "beta_slow": 2.0}),
        (1e4, {"factor": 40.0, "original_max_seq_len": 2048, "truncate": False}),
        (1e4, {"factor": 40.0, "original_max_seq_len": 2048, "attention_factor": 0.7}),
        (1e4, {"factor": 3.0, "original_max_seq_len": 6}),  # the ramp has no width
        (1.5, {"factor": 3.0, "original_max_seq_len": 300}),  # nor room for all of it
    ],
)
def test_yarn_has_the_frequencies_and_the_factor_of_transformers(head_dim, theta, fields):
    scaling = RopeScaling("yarn", **fields)
    config = Config(dim=2 * head_dim, n_heads=2, rope_theta=theta, rope_scaling=scaling)
    rope = {"rope_theta": theta, **rope_json(scaling)}
    theirs = transformers.LlamaConfig(hidden_size=config.dim, num_attention_heads=2, rope_parameters=rope)
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    np.testing.assert_allclose(rope_frequencies(config), expected.numpy(), rtol=1e-6, atol=0)
    assert rope_magnitude(config) == pytest.approx(factor, rel=1e-15)


def test_hidden_sizes_are_those_of_the_published_models():
    assert ffn_hidden_dim(4096, 256) == 11008  # Llama 2 7B
    assert ffn_hidden_dim(5120, 256) == 13824  # 13B
    assert ffn_hidden_dim(8192, 4096, 1.3) == 28672  # 70B
    assert ffn_hidden_dim(4096, 1024, 1.3) == 14336  # Llama 3 8B
    assert Config(dim=288, n_heads=6).hidden_dim == 768  # stories15M


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family):
    config = FAMILIES[family]
    model, text = fresh(config).eval(), tokens(length=40)
    cache = Cache(config, 2, 40)
    parts = [model(text[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 9), (9, 30), (30, 40))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(text), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="41 tokens do not fit into a cache of 40"):
        model(text[:, :1], cache=cache)


@torch.no_grad()
def test_packed_documents_equal_each_alone():
    model, text = fresh(FAMILIES["Llama 3.1"]).eval(), tokens(length=60)
    doc_ids = torch.tensor([[5] * 1 + [9] * 29 + [5] * 30, [0] * 45 + [1] * 15])
    packed = model(text, doc_ids=doc_ids)
    for row, spans in enumerate((((0, 1), (1, 30), (30, 60)), ((0, 45), (45, 60)))):
        for begin, end in spans:
            alone = model(text[row : row + 1, begin:end])
            torch.testing.assert_close(packed[row : row + 1, begin:end], alone, rtol=0, atol=1e-5)


def gradients(
    model: Llama, text: torch.Tensor, targets: torch.Tensor, doc_ids: torch.Tensor | None = None
) -> tuple[float, int, dict]:
    model.zero_grad()
    loss, count = model(text, targets, doc_ids)
    loss.backward()
    return loss.item(), int(count), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [101 * 7, 1 << 22])
def test_the_chunked_loss_and_its_gradients_equal_pytorchs(monkeypatch, tied, chunk):
    monkeypatch.setattr(module, "CHUNK_VALUES", chunk)
    model, text, targets = fresh(Config(**TINY, tied=tied)), tokens(), tokens(seed=1)
    targets[0, :50] = IGNORE
    loss, count, found = gradients(model, text, targets)
    model.zero_grad()
    logits = model(text).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    expected.backward()
    assert count == int((targets != IGNORE).sum()) == 142
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert model(text, targets)[0].item() == pytest.approx(loss, rel=1e-6)


def test_the_chunked_loss_passes_a_gradient_check():
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets, counts = torch.tensor([1, 10, IGNORE, 0, 3, 3]), torch.tensor([1, 0.5, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda a, b: module.cross_entropy_sum(a, b, targets, counts), (x, weight))


def test_checkpointing_changes_no_gradient():
    config, text, targets = Config(**TINY), tokens(), tokens(seed=1)
    plain, again = fresh(config), recompute(fresh(config))
    first, second = gradients(plain, text, targets), gradients(again, text, targets)
    assert first[0] == second[0]
    for name, gradient in first[2].items():
        assert torch.equal(gradient, second[2][name])


def test_a_run_computes_again_what_its_options_say():
    options = Options(checkpointing=True, checkpointing_keeps="attention")
    again, plain = (make_model(o, alone(), Config(**TINY), None) for o in (options, Options()))
    assert again.run_block.keywords == {"keeps": "attention"}
    assert plain.run_block == torch.nn.Module.__call__


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten.mm.default
        return function(*args, **kwargs or {})


def test_what_checkpointing_keeps_is_not_computed_again():
    config, text = Config(**TINY), tokens()
    counted, found = {}, {}
    for keeps in ("", "nothing", "attention", "products"):
        model = recompute(fresh(config), keeps) if keeps else fresh(config)
        with Products() as products:
            found[keeps] = gradients(model, text, text)
        counted[keeps] = products.n
    assert counted["products"] == counted[""]
    assert (
        counted["nothing"] == counted["attention"] == counted[""] + 2 * 7 - 2
    )  # all but w2, which ends a block
    for keeps in ("attention", "products"):
        assert found[keeps][0] == found[""][0]
        assert all(torch.equal(found[keeps][2][name], gradient) for name, gradient in found[""][2].items())


@pytest.mark.filterwarnings("error:Torchinductor does not support code generation for complex")
def test_compiled_equals_eager():
    model, text, targets = fresh(Config(**TINY)), tokens(), tokens(seed=1)
    eager = gradients(model, text, targets)
    model.compile()
    compiled = gradients(model, text, targets)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-6)
    for name, gradient in eager[2].items():
        torch.testing.assert_close(gradient, compiled[2][name], rtol=1e-3, atol=1e-4)


def test_blocks_share_one_compilation():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, text = fresh(Config(**TINY | {"n_layers": 5})), tokens()
    model.compile(backend="aot_eager")
    gradients(model, text, text)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a block, and the loss
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_documents_one_by_one_equal_the_dense_mask(monkeypatch, dtype):
    """The way of CPUs; narrow heads too, which go in quarters."""
    model = fresh(Config(**TINY | {"max_seq_len": 300}, n_kv_heads=2))
    text, targets = tokens(length=300), tokens(length=300, seed=1)
    doc_ids = torch.tensor([[5] * 1 + [9] * 269 + [5] * 30, [5] * 300])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = gradients(model, text, targets, doc_ids)
        monkeypatch.setattr(module, "SHORT_DOCUMENT", 1000)
        expected = gradients(model, text, targets, doc_ids)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert found[0] == pytest.approx(expected[0], rel=near)
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).norm() <= near * gradient.norm(), name


def test_documents_in_blocks_equal_the_dense_mask(monkeypatch):
    """CUDA's way, without the compiler's last stage: PyTorch has no kernels of its gradient for CPUs, and
    refuses it there. Other documents are not compiled anew."""
    torch.compiler.reset()
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    for name in ("create_block_mask", "flex_attention"):
        compiled = torch.compile(getattr(flex, name), backend="aot_eager")
        monkeypatch.setitem(module.FLEX, {"create_block_mask": "mask"}.get(name, "attention"), compiled)
    model, text, targets = fresh(Config(**TINY, n_kv_heads=2)), tokens(), tokens(seed=1)
    documents = [(torch.arange(96) // size).expand(2, -1) for size in (10, 96, 33)]
    dense = [gradients(model, text, targets, doc_ids) for doc_ids in documents]
    monkeypatch.setattr(module, "document_mask", module.document_blocks)
    model.compile(backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for doc_ids, expected in zip(documents, dense, strict=True):
            found = gradients(model, text, targets, doc_ids)
            assert found[0] == pytest.approx(expected[0], rel=1e-6)
            for name, gradient in expected[2].items():
                torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-4)


def test_a_norm_takes_a_weight_of_another_type(recwarn):
    """As FSDP gathers it; PyTorch warns of one, and takes a slower way."""
    norm, x, weight = module.RMSNorm(32, 1e-5), torch.randn(2, 3, 32), torch.randn(32).bfloat16()
    norm.weight.data = weight
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight.float()
    torch.testing.assert_close(norm(x), expected)
    assert not recwarn.list


def test_dropout_works_in_training_only():
    model, text = fresh(Config(**TINY, dropout=0.5)), tokens()
    assert not torch.equal(model(text), model(text))
    assert torch.equal(model.eval()(text), model(text))


@pytest.mark.parametrize("p", [0.1, 0.75])
def test_dropout_drops_that_part_and_scales_the_rest(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 333, requires_grad=True)
    y = module.Dropout(p)(x)
    y.sum().backward()
    y = y.detach()
    assert torch.equal(x.grad, y)
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.003)
    assert bool(((y == 0) | (y == y.max())).all())
    assert float(y.max()) == pytest.approx(1 / (1 - p), rel=1e-3)


def test_initialisation_scales_what_adds_to_the_residual_stream_by_depth():
    torch.manual_seed(0)
    model = Llama(Config(dim=256, n_layers=8, n_heads=4, vocab_size=1000))
    small = 0.02 / math.sqrt(16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all())
            continue
        deviation = small if "wo" in name or "w2" in name else 0.02
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05), name


def test_a_model_on_the_meta_device_takes_no_memory_and_can_be_filled():
    config = dataclasses.replace(FAMILIES["Llama 3.1"], dim=8192, n_heads=64, n_kv_heads=8, n_layers=80)
    with torch.device("meta"):
        large, small = Llama(config), Llama(FAMILIES["Llama 3.1"])
    assert all(parameter.is_meta for parameter in large.parameters())
    source = fresh(FAMILIES["Llama 3.1"])
    small.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(small(tokens()), source(tokens()))
    small.to_empty(device="cpu").init_weights()
    assert torch.isfinite(small(tokens())).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_head": 4}, "Config has no field 'n_head', did you mean 'n_heads'?"),
        ({"n_heads": 6, "n_kv_heads": 4}, "n_kv_heads = 4 does not divide n_heads = 6"),
        ({"dim": 30, "n_heads": 2}, "head_dim = 15, allowed even numbers"),
        ({"n_layers": 0}, "n_layers = 0, allowed 1 or more"),
        ({"dropout": 1.0}, "dropout = 1.0, allowed 0 to 1"),
        (
            {"rope_scaling": {"kind": "ntk"}},
            "rope_scaling kind = 'ntk', allowed 'linear' and 'llama3' and 'yarn'",
        ),
        (
            {"rope_scaling": {"kind": "yarn", "factor": 0.5}},
            "rope_scaling factor = 0.5, allowed 1 or more with YaRN",
        ),
        (
            {"rope_scaling": {"kind": "yarn", "beta_fast": 1.0}},
            "rope_scaling beta_slow = 1.0, beta_fast = 1.0: allowed 0 < slow < fast",
        ),
        (
            {"rope_scaling": {"kind": "yarn", "attention_factor": -1.0}},
            "rope_scaling original_max_seq_len = 8192, attention_factor = -1.0: allowed a length",
        ),
        (
            {"rope_scaling": {"kind": "yarn", "original_max_seq_len": 1}},
            "rope_scaling original_max_seq_len = 1, rope_theta = 10000.0: no pair of 24 turns",
        ),
        ({"rope_scaling": {"kind": "yarn"}, "rope_theta": 1.0}, "rope_theta = 1.0, allowed more than 1"),
        ({"rope_scaling": {"factors": 8}}, "RopeScaling has no field 'factors', did you mean 'factor'?"),
    ],
)
def test_a_bad_configuration_is_refused(values, message):
    with pytest.raises(ValueError) as error:
        Config.from_dict(values)
    assert message in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_survives_as_a_dictionary(family):
    assert Config.from_dict(FAMILIES[family].to_dict()) == FAMILIES[family]
