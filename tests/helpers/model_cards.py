"""Sliced models that have a card, and what cards say of licences."""

from sliced_models import sliced_model


OTHER = "license: other\nlicense_name: llama3\nlicense_link: {link}"
"""Metadata of a model whose licence the Hub has no name for."""


def publishable_model(**settings):
    """Slices a tiny model that has the vocabulary of the tiny tokenizer."""
    return sliced_model(sizes={"vocab_size": 98}, **settings)


def recorded_model(**record):
    """Slices a model, and puts a record in place of its own."""
    model = publishable_model(sparsity=0.5)
    model.config.slicegpt = record
    return model


def licence_of(card):
    """Returns those metadata of a card that are about its licence."""
    return {key: value for key, value in card.data.to_dict().items() if key.startswith("license")}
