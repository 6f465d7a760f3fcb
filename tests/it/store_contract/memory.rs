//! The fake.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_persister_actors::store::OpenStore;
use event_persister_actors::store::operator::StoreOperator;
use event_persister_actors::testing::MemoryStore;
use uuid::Uuid;

use super::{Fixture, store_contract_tests};

impl Fixture for MemoryStore {
    fn open_store(&self) -> OpenStore {
        MemoryStore::open_store(self)
    }

    fn operator(&self) -> Arc<dyn StoreOperator> {
        Arc::new(self.clone())
    }

    fn refuse(&self, id: Uuid) {
        MemoryStore::refuse(self, id);
    }

    fn set_broken(&self, broken: bool) {
        self.set_available(!broken);
    }

    fn rows(&self) -> BTreeMap<Uuid, Vec<(String, String)>> {
        self.events()
            .into_iter()
            .map(|(id, stored)| {
                let mut resources: Vec<_> = stored
                    .resources
                    .into_iter()
                    .map(|resource| (resource.resource_id, resource.role))
                    .collect();
                resources.sort_unstable();
                (id, resources)
            })
            .collect()
    }
}

store_contract_tests!(MemoryStore::new());
