"""The encoder through torch.compile, as on a GPU: static shapes, the same vectors."""

import pytest
import torch

from skyvec_core.embedder import Model
from skyvec_core.model.config import TransformerConfig
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.observations import Tokens

pytestmark = pytest.mark.integration
DOMAINS = ("tok_spectrum_desi", "tok_z")


@pytest.mark.timeout(300)
def test_a_compiled_encoder_gives_the_same_vectors():
    transformer = EncoderDecoder(
        TransformerConfig(dim=32, num_heads=2, encoder_depth=1, decoder_depth=1,
                          domains_in=DOMAINS, domains_out=DOMAINS)
    )  # fmt: skip
    transformer.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    tokens = {
        key: Tokens(
            ids_BN=torch.randint(0, 1024, (5, count), generator=generator),
            valid_BN=torch.ones((5, count), dtype=torch.bool),
        )
        for key, count in zip(DOMAINS, (273, 1), strict=True)
    }
    tokens["tok_spectrum_desi"].valid_BN[3] = False  # a short object shares a padded batch
    plain = Model(transformer, {}, name="a").embed(tokens)
    compiled = Model(transformer, {}, name="b", compiled=True).embed(tokens)
    assert torch.allclose(compiled, plain, atol=1e-5)
