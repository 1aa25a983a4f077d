"""An independent judge of digit samples: how often a support vector machine reads the intended label.

The machine is scikit-learn's SVC, trained on the 1,797 real digits at 8x8; it shares nothing with the
feature network. Samples are averaged over colours and down to 8x8.

    python scripts/judge_digits.py runs/digits/samples/*.npz
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.svm import SVC

SIDE = 8
BRIGHTEST = 16


def as_digits(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 (N, H, W, 3) as rows of scikit-learn's digits: (N, 64) in 0..16."""
    number, height, width, _ = images.shape
    grey = images.mean(axis=3).reshape(number, SIDE, height // SIDE, SIDE, width // SIDE)
    rows: NDArray[np.float64] = grey.mean(axis=(2, 4)).reshape(number, SIDE * SIDE) * BRIGHTEST / 255
    return rows


def main() -> None:
    """Print each file's share of samples that are read as they were meant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", type=Path, help="npz files with arr_0 and arr_1")
    digits = load_digits()
    judge = SVC().fit(digits.data, digits.target)
    for path in parser.parse_args().samples:
        with np.load(path, allow_pickle=False) as arrays:
            agreement = (judge.predict(as_digits(arrays["arr_0"])) == arrays["arr_1"]).mean()
        print(f"{path.stem:<24}{agreement:7.1%}")


if __name__ == "__main__":
    main()
