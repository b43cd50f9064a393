"""Which language a text is in, told offline and always the same, for rules that ask for `language`.

py3langid: its model ships in the wheel, it draws no dice (langdetect does), and it is a twentieth of lingua's size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from sluiceway.core.errors import InputError

_SURE = 0.5  # probability below which a language is not told: "ok" and "12345" are in none
_READ = 2000  # characters that suffice, so that a long document costs no more than a ticket
UNKNOWN = "und"


@cache
def detector() -> Callable[[str], str]:
    """A function from a text to its ISO 639-1 code, `und` where it can't be told. Loading takes about a second.

    Raises InputError that names the extra where the library is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise InputError(
            "language",
            "a rule of this policy asks for `language`, and the detector is not installed."
            " Mend: pip install 'sluiceway[language]', or take `language` out of the rules",
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def language(text: str) -> str:
        code, probability = identifier.classify(text[:_READ])
        # `zxx` is ISO 639's word for text that is no language.
        return UNKNOWN if probability < _SURE or code == "zxx" else str(code)

    return language
