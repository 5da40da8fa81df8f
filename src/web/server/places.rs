//! How many connections there may be, of all and of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Connections at the same time; those beyond wait in the operating system's queue.
const ALL: usize = 256;

/// Those of one address. A browser has six at most.
const OF_ONE: usize = 16;

/// Room for connections.
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// Of each address that has any.
    taken: Mutex<HashMap<IpAddr, usize>>,
    behind_proxy: bool,
    told: AtomicBool,
}

/// The room that one connection has.
pub(super) struct Place {
    of: Arc<Places>,
    address: IpAddr,
    _free: OwnedSemaphorePermit,
}

impl Places {
    /// All of it. Behind a proxy every connection is the proxy's.
    pub(super) fn new(behind_proxy: bool) -> Self {
        Self {
            free: Arc::new(Semaphore::new(ALL)),
            taken: Mutex::default(),
            behind_proxy,
            told: AtomicBool::new(false),
        }
    }

    /// Waits for room.
    pub(super) async fn free(&self) -> OwnedSemaphorePermit {
        match self.free.clone().acquire_owned().await {
            Ok(free) => free,
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives the room to a connection from this address; `None` where that has enough.
    pub(super) fn take(
        self: &Arc<Self>,
        free: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        // This machine's own are those of its people, or of a proxy that nobody has named.
        let bounded = !self.behind_proxy && !address.is_loopback();
        if bounded && *count >= OF_ONE {
            if !self.told.swap(true, Ordering::Relaxed) {
                warn!(
                    %address,
                    most = OF_ONE,
                    "too many connections from one address, and more are not taken; if it is a proxy, set \
                     ORGSTREAM_WEB_BEHIND_PROXY=true"
                );
            }
            return None;
        }
        *count += 1;
        Some(Place {
            of: self.clone(),
            address,
            _free: free,
        })
    }
}

impl Place {
    /// Where the connection comes from.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken(places: &Arc<Places>, address: &str, most: usize) -> Vec<Place> {
        let mut all = Vec::new();
        while all.len() < most {
            let free = places.free().await;
            match places.take(free, address.parse().unwrap()) {
                Some(place) => all.push(place),
                None => break,
            }
        }
        all
    }

    #[tokio::test]
    async fn one_address_does_not_take_the_places_of_all_others() {
        let places = Arc::new(Places::new(false));
        let greedy = taken(&places, "10.0.0.1", 100).await;
        assert_eq!(greedy.len(), OF_ONE);
        let other = taken(&places, "10.0.0.2", 1).await;
        assert_eq!(other.len(), 1);
        drop(greedy);
        assert_eq!(taken(&places, "10.0.0.1", 100).await.len(), OF_ONE);
        drop(other);
        assert!(places.taken.lock().unwrap().is_empty());
        assert_eq!(places.free.available_permits(), ALL);
    }

    #[tokio::test]
    async fn a_proxy_may_take_all() {
        let places = Arc::new(Places::new(true));
        assert_eq!(taken(&places, "10.0.0.1", 100).await.len(), 100);
        let places = Arc::new(Places::new(false));
        assert_eq!(taken(&places, "127.0.0.1", 100).await.len(), 100);
    }
}
