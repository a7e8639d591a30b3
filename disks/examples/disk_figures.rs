//! Prints the figures of the encrypted disk.

fn main() {
    match coffer_disk::bench::run() {
        Ok(report) => println!("{report}"),
        Err(error) => eprintln!("the disk in memory fails: {error}"),
    }
}
