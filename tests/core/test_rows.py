import pytest
import torch

from skyvec_core.model.blocks import Rows
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder

DOMAINS = ("tok_flux_g", "tok_flux_r", "tok_xp_bp", "tok_z")

# Shape letters: B object, T input token, Q target token, D width.


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        dim=32, num_heads=4, encoder_depth=2, decoder_depth=2,
        domains_in=DOMAINS, domains_out=DOMAINS,
    )  # fmt: skip
    made = EncoderDecoder(config)
    made.initialize(torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def batch(model):
    """Codes, positions and validity of inputs, positions and validity of targets; gaps anywhere."""
    generator = torch.Generator().manual_seed(1)
    words = model.vocabulary
    codes_BT = torch.randint(0, words.num_codes, (5, 12), generator=generator)
    positions_BT = torch.randint(0, words.num_positions, (5, 12), generator=generator)
    targets_BQ = torch.randint(0, words.num_positions, (5, 7), generator=generator)
    valid_BT = torch.rand((5, 12), generator=generator) < 0.6
    asked_BQ = torch.rand((5, 7), generator=generator) < 0.5
    valid_BT[0], asked_BQ[0] = True, True
    asked_BQ[1] = False
    return codes_BT, positions_BT, valid_BT, targets_BQ, asked_BQ


def hidden(model, batch, *, packed):
    codes_BT, positions_BT, valid_BT, targets_BQ, asked_BQ = batch
    rows, target_rows = (Rows.of(v) if packed else None for v in (valid_BT, asked_BQ))
    context_BTD = model.encode(codes_BT, positions_BT, valid_BT, rows)
    return context_BTD, model.decode(context_BTD, valid_BT, targets_BQ, asked_BQ, rows, target_rows)


def test_tokens_are_the_same_without_padding(model, batch):
    valid_BT, asked_BQ = batch[2], batch[4]
    with torch.no_grad():
        context, out = hidden(model, batch, packed=False)
        packed_context, packed_out = hidden(model, batch, packed=True)
    torch.testing.assert_close(packed_context[valid_BT], context[valid_BT], rtol=0, atol=2e-6)
    torch.testing.assert_close(packed_out[asked_BQ], out[asked_BQ], rtol=0, atol=2e-6)
    assert (packed_context[~valid_BT] == 0).all()
    assert (packed_out[~asked_BQ] == 0).all()


def test_gradients_are_the_same_without_padding(model, batch):
    asked_BQ = batch[4]
    found = []
    for packed in (False, True):
        model.zero_grad(set_to_none=True)
        hidden(model, batch, packed=packed)[1][asked_BQ].square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * (1 + largest))


def test_rows_go_back_where_they_came_from():
    valid_BT = torch.tensor([[True, False, True], [False, False, True]])
    rows = Rows.of(valid_BT)
    x_BTF = torch.arange(12.0).view(2, 3, 2)
    assert rows.packed(x_BTF).tolist() == x_BTF[valid_BT].tolist()
    assert rows.padded(rows.packed(x_BTF)).tolist() == (x_BTF * valid_BT[..., None]).tolist()


def test_heads_are_the_tables_of_the_domains(model):
    hidden_D = torch.randn(32, generator=torch.Generator().manual_seed(2))
    for modality, head_VD in zip(model.vocabulary.modalities, model.heads(), strict=True):
        assert torch.equal(head_VD @ hidden_D, model.logits(hidden_D, modality.token_key))
