"""The built-in trackers: where metrics go while a run goes on."""

from __future__ import annotations

from tutelage_plugins.trackers.csv import Csv
from tutelage_plugins.trackers.mlflow import MLflow
from tutelage_plugins.trackers.tensorboard import TensorBoard
from tutelage_plugins.trackers.wandb import WandB

TRACKERS = (Csv, TensorBoard, WandB, MLflow)
