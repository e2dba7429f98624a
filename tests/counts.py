"""How many cases of each kind the suite has: ``python tests/counts.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What is counted, the least that there must be, and the tests whose cases count.
KINDS = {
    "odd images": (
        145,
        r"test_odd_images\.py::|test_images\.py::(test_every_format|test_exif_or|test_scan_refuses"
        r"|test_pixels_without|test_the_first_of|test_sixteen|test_alpha|test_too_many|test_a_png)"
        r"|test_bit_depth\.py::|test_image_size\.py::",
    ),
    "mistakes in the configuration": (
        270,
        r"test_config\.py::test_(a_wrong|an_unknown|what_is_no_override|values_that_contra"
        r"|a_model_from|a_typed|fractions|a_class_from|no_corner|a_plus|a_key_of)"
        r"|test_configs\.py::test_an_open_key|test_cli\.py::test_a_mistake|test_mistakes\.py::"
        r"|test_config\.py::test_(words_of_other|the_commonest|what_the_words|letters|names_that)",
    ),
    "structures of folders": (43, r"test_folder_shapes\.py::"),
    "corrupt inputs": (
        490,
        r"test_images\.py::test_scan_refuses|test_odd_images\.py::test_what_is_no_image"
        r"|test_source_reading\.py::test_(a_damaged|a_foreign|tensors_that_are_no_plain)"
        r"|test_source_mindspore_files\.py::test_(a_damaged|a_real_file|other_files)"
        r"|test_source_optimizer\.py::test_damage|test_source\.py::test_a_truncated"
        r"|test_checksum\.py::|test_files\.py::test_(a_file_that|a_damaged)"
        r"|test_features_store\.py::test_an_unsound|test_data\.py::test_damaged"
        r"|test_read_back\.py::test_(caches|a_card|a_state|a_recipe|class_names|memory)",
    ),
    "malicious files": (
        290,
        r"test_source_safety\.py::test_a_malicious|test_files\.py::test_a_pickle"
        r"|test_source_reading\.py::test_(a_bomb|hostile)|test_source_hub\.py::test_a_pickle"
        r"|test_download\.py::test_(an_entry_that|a_link|a_bomb)|test_user_yaml\.py::"
        r"|test_read_back\.py::test_(nothing|lock_and|a_job|a_pipe|a_run_whose|no_other)",
    ),
}


class Collected:
    """Notes the names of the cases that pytest collects."""

    def __init__(self) -> None:
        self.cases: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.cases += [item.nodeid for item in session.items]


def counts() -> dict[str, int]:
    """Cases by kind, as pytest collects them: in this process, which may have the modules."""
    names = {
        f"{name}.py"
        for _, kinds in KINDS.values()
        for name in re.findall(r"test_\w+(?=\\\.py)", kinds)
    }
    files = sorted(str(next(HERE.rglob(name))) for name in names)
    plain = ["-p", "no:cacheprovider", "-p", "no:assertion", "-n", "0"]
    collected = Collected()
    done = pytest.main(["--collect-only", "-qq", *plain, *files], plugins=[collected])
    assert done == pytest.ExitCode.OK
    return {
        kind: sum(bool(re.search(pattern, case)) for case in collected.cases)
        for kind, (_, pattern) in KINDS.items()
    }


if __name__ == "__main__":
    for kind, count in counts().items():
        print(f"{kind:<30} {count:>4}  (at least {KINDS[kind][0]})")
