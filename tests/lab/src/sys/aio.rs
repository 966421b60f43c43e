//! Asynchronous I/O (io_submit(2)): requests that one thread has outstanding at once.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::memory::Buffer;

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;

/// Requests of one length, each with memory of its own in which direct I/O is possible.
pub struct Queue {
    context: libc::c_ulong,
    memory: Buffer,
    length: usize,
    blocks: Vec<libc::iocb>,
    /// Whether a request of this number is outstanding.
    busy: Vec<bool>,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

impl Queue {
    /// As many as `depth` requests of `length` bytes, a multiple of 512.
    pub fn new(depth: u32, length: usize) -> io::Result<Self> {
        let count = usize::try_from(depth).map_err(io::Error::other)?;
        let memory = Buffer::new(count * length)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context to where the pointer says.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        check(result)?;
        // SAFETY: all of the fields are integers, for which zero is a value.
        let block: libc::iocb = unsafe { std::mem::zeroed() };
        Ok(Self {
            context,
            memory,
            length,
            blocks: vec![block; count],
            busy: vec![false; count],
        })
    }

    /// Has request `number` read from `file` at `offset`, or write to it. It must not be outstanding.
    pub fn submit(
        &mut self,
        number: usize,
        file: &File,
        offset: u64,
        write: bool,
    ) -> io::Result<()> {
        assert!(!self.busy[number], "request {number} is outstanding");
        let block = &mut self.blocks[number];
        block.aio_data = number as u64;
        block.aio_lio_opcode = if write {
            IOCB_CMD_PWRITE
        } else {
            IOCB_CMD_PREAD
        };
        block.aio_fildes = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        block.aio_buf = self.memory.address() + (number * self.length) as u64;
        block.aio_nbytes = self.length as u64;
        block.aio_offset = i64::try_from(offset).map_err(io::Error::other)?;
        let mut list = [block as *mut libc::iocb];
        let list = list.as_mut_ptr();
        // SAFETY: one block, which the kernel copies. The memory that it names is inside the buffer,
        // no request has it, nobody else refers to it, and it lives until the context is gone, which waits for
        // all requests. The kernel itself keeps the file open.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1_usize, list) };
        if check(result)? != 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.busy[number] = true;
        Ok(())
    }

    /// Waits for a request, and returns those that have been carried out since.
    pub fn wait(&mut self) -> io::Result<Vec<usize>> {
        let mut events = [Event::default(); 32];
        // SAFETY: there is room for as many events as the call says; without a time it waits.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                1_usize,
                events.len(),
                events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let count = usize::try_from(check(result)?).map_err(io::Error::other)?;
        let mut over = Vec::with_capacity(count);
        for event in events.iter().take(count) {
            let number = usize::try_from(event.data).map_err(io::Error::other)?;
            self.busy[number] = false;
            if event.result < 0 {
                let error = i32::try_from(-event.result).unwrap_or(libc::EIO);
                return Err(io::Error::from_raw_os_error(error));
            }
            if u64::try_from(event.result) != Ok(self.length as u64) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            over.push(number);
        }
        Ok(over)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the context is the value's own. The call waits for what is outstanding.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_requests_are_carried_out_once() {
        let path = std::env::temp_dir().join(format!("nido-aio-{}", std::process::id()));
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&[7; 4096 * 8]).unwrap();
        let mut queue = Queue::new(4, 4096).unwrap();
        for number in 0..4 {
            // The memory is zeroed.
            queue
                .submit(number, &file, 4096 * number as u64, number == 2)
                .unwrap();
        }
        let mut over = Vec::new();
        while over.len() < 4 {
            over.extend(queue.wait().unwrap());
        }
        over.sort_unstable();
        assert_eq!(over, [0, 1, 2, 3]);
        drop(queue);
        let mut written = [1; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut written, 4096 * 2).unwrap();
        assert_eq!(written, [0; 4096]);
    }
}
