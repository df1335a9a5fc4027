"""Licences: the identifiers that the Hub knows, and what is known of the corpora that are built here."""

from __future__ import annotations

from difflib import get_close_matches

from ..evaluation.standard_pools import corpus_called
from .refusal import PublishError

# Of https://huggingface.co/docs/hub/repositories-licenses, which no library has.
_HUB_IDENTIFIERS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""

_KNOWN = {
    "spoken_shapes": "Scenes are drawn and speech is synthesised by espeak-ng; no media of others are in it.",
    "tuxpaint": "Pictures and speech are Tux Paint's stamps, GPL-2.0.",
    "flickr8k_audio": "The recordings are CC BY-SA; the pictures of Flickr8k are for research.",
    "spoken_coco": "The recordings are CC BY-SA; the pictures of COCO are under the terms of their authors on Flickr.",
}


def check_license(license: str) -> None:
    """Refuse a licence that the Hub does not know, which it would refuse itself, but only at the end.

    Raises:
        PublishError: that, with the nearest that it knows.
    """
    known = _HUB_IDENTIFIERS.split()
    if license in known:
        return
    near = " or ".join(get_close_matches(license.lower().replace(" ", "-"), known))
    raise PublishError(
        f"The Hub knows no licence {license!r}.{f' Did you mean {near}?' if near else ''} Take an identifier of "
        "https://huggingface.co/docs/hub/repositories-licenses; for any that is not there, other."
    )


def licences_of(corpus: str) -> str | None:
    """A sentence on the licences of a corpus, given as a name, a folder or a Hub id; None if nothing is known."""
    known = corpus_called(corpus, _KNOWN)
    return _KNOWN[known] if known else None
