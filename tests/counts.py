"""How many cases of each kind the suite has: ``python tests/counts.py``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# What is counted, the least that there must be, and the tests whose cases count.
KINDS = {
    "odd images": (
        145,
        r"test_odd_images\.py::|test_images\.py::(test_every_format|test_exif_or|test_scan_refuses"
        r"|test_pixels_without|test_the_first_of|test_sixteen|test_alpha|test_too_many|test_a_png)"
        r"|test_bit_depth\.py::|test_image_sizes\.py::",
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


def counts() -> dict[str, int]:
    """Cases by kind, as pytest collects them."""
    names = {
        f"{name}.py"
        for _, kinds in KINDS.values()
        for name in re.findall(r"test_\w+(?=\\\.py)", kinds)
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            *sorted(str(next(HERE.rglob(n))) for n in names),
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    cases = [line for line in done.stdout.splitlines() if "::" in line]
    return {kind: sum(bool(re.search(p, c)) for c in cases) for kind, (_, p) in KINDS.items()}


if __name__ == "__main__":
    for kind, count in counts().items():
        print(f"{kind:<30} {count:>4}  (at least {KINDS[kind][0]})")
