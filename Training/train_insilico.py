"""Train a staging network on fibrosis painted into real bodies, one network per fold of bodies.

    python Training/insilico_bodies.py ... -o BODIES
    python Training/train_insilico.py --bodies BODIES -o RUN [--steps 1500] [--workers 8]

Every body appears in all stages. Each fold leaves bodies out and is measured on cases painted into
them. RUN receives plan.json, checkpoint.pt, log.csv, LFS.onnx (the ensemble of the folds) and
fold_K.onnx. The same command resumes an interrupted run.
"""

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.options import add_options, with_options
from common.resume import check_plan, digest
from lfs.data_free import PATCH_OVERLAP
from LiverFibrosisStagingLib import __version__
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES
from painted.cases import Source
from painted.data import Pool
from painted.export import export
from painted.fit import Schedule, Training
from painted.network import INPUTS, LIVER_HU, SPACING_MM, Input, OrganNetwork

