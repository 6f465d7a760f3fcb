//! PostgreSQL with partitioned tables, in a database of its own for each test.

use super::postgres::PostgresFixture;
use super::store_contract_tests;

store_contract_tests!(PostgresFixture::partitioned().await);
