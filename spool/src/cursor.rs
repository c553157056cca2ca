//! The cursor file of a lane: what has been acknowledged, and what was durable, in two slots that take turns.

use crate::format::{CURSOR_FILE_BYTES, CursorSlot, PAGE};
use crate::fs::{FileRef, Fs};
use std::io;
use std::path::{Path, PathBuf};

const NAME: &str = "cursor";

pub(crate) struct CursorFile {
    dir: PathBuf,
    /// `None` until the first write, and after a failed one: a descriptor whose sync has failed is not believed again.
    file: Option<FileRef>,
    last: CursorSlot,
}

impl CursorFile {
    /// Opens the file as far as there is one, and reads the newer of its two slots.
    pub(crate) fn open(fs: &dyn Fs, dir: &Path) -> Self {
        let mut cursor = Self { dir: dir.to_owned(), file: None, last: CursorSlot::default() };
        let Ok(file) = fs.open(&dir.join(NAME)) else { return cursor };
        let slot = |sequence| {
            let mut page = [0; PAGE];
            let offset = CursorSlot { sequence, ..CursorSlot::default() }.offset();
            file.read_at(&mut page, offset).ok()?;
            CursorSlot::decode(&page)
        };
        let newest = [slot(0), slot(1)].into_iter().flatten().max_by_key(|slot| slot.sequence);
        // A file without a good slot is replaced at the first write.
        if let Some(newest) = newest {
            cursor.last = newest;
            cursor.file = Some(file);
        }
        cursor
    }

    pub(crate) const fn last(&self) -> CursorSlot {
        self.last
    }

    /// Writes and syncs. After an error nothing is known to have been written; the next call begins a new file.
    pub(crate) fn save(&mut self, fs: &dyn Fs, cursor: u64, durable: u64) -> io::Result<()> {
        let slot = CursorSlot { sequence: self.last.sequence + 1, cursor, durable };
        match self.file.take() {
            Some(file) => {
                file.write_at(&slot.encode(), slot.offset())?;
                // Why: segments below the cursor are given up on the word of this slot.
                file.sync_data()?;
                self.file = Some(file);
            }
            None => {
                let unfinished = self.dir.join("cursor.tmp");
                let file = fs.create(&unfinished)?;
                file.write_at(&[0; CURSOR_FILE_BYTES as usize], 0)?;
                file.write_at(&slot.encode(), slot.offset())?;
                // Why: the rename must not be durable before the bytes are.
                file.sync_data()?;
                fs.rename(&unfinished, &self.dir.join(NAME))?;
                // Why: else the file could be gone after a crash, and with it what the slot said.
                fs.sync_dir(&self.dir)?;
                self.file = Some(file);
            }
        }
        self.last = slot;
        Ok(())
    }
}
