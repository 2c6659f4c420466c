"""What a training starts from: a checkpoint, or an exported file."""

from pathlib import Path
from zipfile import is_zipfile

import torch

from lfs import imported
from lfs.network import LFSNetwork
from LiverFibrosisStagingLib.errors import StagingError


class Start:
    """A checkpoint.pt or an exported file with one network or an ensemble.

    signs: whether it is a `SignNetwork`, of which only the layers behind the maps are trained.
    staged: whether it is an exported file, with which cases can be staged.
    """

    def __init__(self, path: Path) -> None:
        """Raises StagingError for another file, naming those that can be used."""
        self.path, self.signs = path, False
        self._networks: list[LFSNetwork] = []
        self._state: dict[str, torch.Tensor] = {}
        if not path.is_file():
            raise StagingError(f"{path}: there is no such file; {imported.NEEDED}.")
        self.staged = not is_zipfile(path)  # PyTorch's checkpoints are ZIP archives
        if not self.staged:
            self._state = _best(path)
        elif imported.Imported(path).graph.name == "SignNetwork":
            self.signs = True
        else:
            self._networks = imported.load(path)

    def network(self, fold: int, untrained: LFSNetwork) -> LFSNetwork:
        """The network that a fold starts with; of an ensemble with n members, fold modulo n.

        The file's network if it has the layers of `untrained`, otherwise `untrained` with those
        weights that have the same shape.
        """
        state = self._state
        if self._networks:
            found = self._networks[fold % len(self._networks)]
            if _shapes(found) == _shapes(untrained) and found.patch_size == untrained.patch_size:
                return found
            state = found.state_dict()
        own = untrained.state_dict()
        matching = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        untrained.load_state_dict(own | matching)
        return untrained


def _best(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["best"]
    except Exception:  # torch.load raises errors of many types for damaged files
        raise StagingError(
            f"{path}: it is not a checkpoint of train.py; {imported.NEEDED}."
        ) from None


def _shapes(network: LFSNetwork) -> dict[str, torch.Size]:
    return {name: values.shape for name, values in network.state_dict().items()}
