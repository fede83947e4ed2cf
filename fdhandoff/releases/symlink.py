"""``symlink:PATH``: the layout in which a link ``current`` leads to ``releases/TAG``. Releases stay where they are."""

from __future__ import annotations

import os

from . import Found, Source, SourceError, tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class SymlinkSource(Source):
    remote = False

    def look(self, _: Mapping[str, Any]) -> Found:
        path = os.path.abspath(self.where)
        place = os.path.realpath(path)
        try:
            inode = os.stat(place).st_ino
        except OSError as error:
            raise SourceError(f"{path} leads to {place}, which can't be used: {error.strerror}") from None
        # By its inode, too: a directory that was made anew under the same name is another release.
        return Found(f"{place}:{inode}", tag_of(os.path.basename(place)), place=place, quiet=(path,))


SOURCE = SymlinkSource
