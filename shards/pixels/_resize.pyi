import numpy as np
import numpy.typing as npt

def bicubic(picture: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], mirrored: bool, vectors: bool = True, /) -> None: ...
