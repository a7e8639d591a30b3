//! A transaction that writes, on a connection of its own, which is given back only after a commit.
//!
//! SQLite ends a transaction by itself when the disk is full or fails. A connection that does not know so takes
//! the next transaction for one within the last and refuses it; so one that did not commit is closed instead.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor as _, Sqlite, SqlitePool};

/// A writer's transaction. Dropped without a commit, nothing was written.
pub(super) struct Writing {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Writing {
    /// Begins as a writer, so that nobody else writes until this one is done.
    pub(super) async fn begin(pool: &SqlitePool) -> Result<Self, sqlx::Error> {
        let mut writing = Self { connection: pool.acquire().await?, committed: false };
        writing.connection.execute("BEGIN IMMEDIATE").await?;
        Ok(writing)
    }

    /// When this returns without an error, what was written is on the disk.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("COMMIT").await?;
        self.committed = true;
        Ok(())
    }
}

impl Deref for Writing {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Writing;
    use crate::store::Store;
    use sqlx::Executor as _;

    #[tokio::test]
    async fn what_was_not_committed_is_not_there_and_in_nobodys_way() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("db")).await.unwrap();
        store.pool.execute("CREATE TABLE kept (n INTEGER)").await.unwrap();
        // More often than there are connections.
        for _ in 0..8 {
            let mut dropped = Writing::begin(&store.pool).await.unwrap();
            dropped.execute("INSERT INTO kept VALUES (1)").await.unwrap();
            drop(dropped);
            let mut committed = Writing::begin(&store.pool).await.unwrap();
            committed.execute("INSERT INTO kept VALUES (2)").await.unwrap();
            committed.commit().await.unwrap();
        }
        let kept: Vec<i64> =
            sqlx::query_scalar("SELECT n FROM kept").fetch_all(&store.pool).await.unwrap();
        assert_eq!(kept, [2; 8]);
    }
}
