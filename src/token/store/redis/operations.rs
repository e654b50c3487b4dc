//! Operations in Redis: a key for each with a time to live, a key for each id of a request, and a sorted list of ids for
//! each caller. Each step is one Lua script.
//!
//! The id of a request holds `h` and the operation that holds it, `d` and the one that holds it and is done, or `f` and the
//! last one that has freed it.

use redis::FromRedisValue;
use uuid::Uuid;

use super::{RedisStore, fault::RedisFault};
use crate::token::store::{Error, operations::StoredOperation};

/// `KEYS`: of each operation its request's, its own, and its caller's list. `ARGV`: the time to live, the smallest id
/// that stays in a list; of each operation its id and its text. What holds the others' ids, or nothing.
const CLAIM: &str = "\
local holders = {}
for i = 1, #KEYS / 3 do
  local request, operation, list = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local id, text = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local held = redis.call('GET', request)
  if held and string.sub(held, 1, 1) ~= 'f' and held ~= 'h' .. id then
    holders[i] = string.sub(held, 2)
  elseif held ~= 'h' .. id and redis.call('EXISTS', operation) == 1 then
    holders[i] = id -- it is over: this claim was late
  else
    redis.call('SET', request, 'h' .. id, 'PX', ARGV[1])
    redis.call('SET', operation, text, 'PX', ARGV[1])
    redis.call('ZREMRANGEBYLEX', list, '-', '(' .. ARGV[2])
    redis.call('ZADD', list, 0, id)
    redis.call('PEXPIRE', list, ARGV[1])
    holders[i] = ''
  end
end
return holders
";

/// `KEYS`: of each operation its request's and its own. `ARGV`: the time to live; of each its id, its text, and how it
/// leaves the id: `f`, free, and such a one is put there in any case, for a claim that is still on its way; `d`, held; `s`,
/// held, unless it has ended already.
const END: &str = "\
for i = 1, #KEYS / 2 do
  local request, operation = KEYS[2 * i - 1], KEYS[2 * i]
  local id, text, leaves = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local held = redis.call('GET', request)
  if leaves ~= 's' or held == 'h' .. id then
    if redis.call('EXISTS', operation) == 1 then
      redis.call('SET', operation, text, 'KEEPTTL')
    elseif leaves == 'f' then
      redis.call('SET', operation, text, 'PX', ARGV[1])
    end
    if held == 'h' .. id or held == 'd' .. id then
      redis.call('SET', request, (leaves == 'f' and 'f' or 'd') .. id, 'KEEPTTL')
    end
  end
end
return 1
";

/// `KEYS[1]`: a request's. `ARGV[1]`: what the keys of its caller's operations begin with.
const FIND_REQUEST: &str = "\
local held = redis.call('GET', KEYS[1])
if not held then return false end
return redis.call('GET', ARGV[1] .. string.sub(held, 2))
";

/// `KEYS[1]`: a caller's list. `ARGV`: what the keys of its operations begin with, where to begin, how many.
const LIST: &str = "\
local texts = {}
for _, id in ipairs(redis.call('ZREVRANGEBYLEX', KEYS[1], ARGV[2], '-', 'LIMIT', 0, ARGV[3])) do
  local text = redis.call('GET', ARGV[1] .. id)
  if text then texts[#texts + 1] = text end
end
return texts
";

impl RedisStore {
    pub(in crate::token::store) async fn claim_operations(
        &self,
        operations: &[StoredOperation],
        remembered_ms: u64,
    ) -> Result<Vec<Option<Uuid>>, Error> {
        let mut claim = redis::cmd("EVAL");
        claim.arg(CLAIM).arg(operations.len() * 3);
        for operation in operations {
            let StoredOperation { owner, request_id, operation_id, .. } = operation;
            claim.arg(self.request_key(owner, *request_id)).arg(self.operation_key(owner, *operation_id));
            claim.arg(self.list_key(owner));
        }
        claim.arg(remembered_ms).arg(oldest(remembered_ms).to_string());
        for operation in operations {
            claim.arg(operation.operation_id.to_string()).arg(&operation.text);
        }
        let holders: Vec<String> = self.answer(self.0.ask(&claim).await?, "be written").await?;
        let holder = |holder: String| if holder.is_empty() { Ok(None) } else { holder.parse().map(Some) };
        let holders: Result<Vec<_>, _> = holders.into_iter().map(holder).collect();
        match holders {
            Ok(holders) if holders.len() == operations.len() => Ok(holders),
            _ => Err(self.operations_unusable()),
        }
    }

    pub(in crate::token::store) async fn end_operations(
        &self,
        operations: &[StoredOperation],
        remembered_ms: u64,
    ) -> Result<(), Error> {
        let mut end = redis::cmd("EVAL");
        end.arg(END).arg(operations.len() * 2);
        for StoredOperation { owner, request_id, operation_id, .. } in operations {
            end.arg(self.request_key(owner, *request_id)).arg(self.operation_key(owner, *operation_id));
        }
        end.arg(remembered_ms);
        for StoredOperation { operation_id, is_free, is_surmised, text, .. } in operations {
            let leaves = match (is_free, is_surmised) {
                (true, _) => "f",
                (false, true) => "s",
                (false, false) => "d",
            };
            end.arg(operation_id.to_string()).arg(text).arg(leaves);
        }
        let _: u64 = self.answer(self.0.ask(&end).await?, "be written").await?;
        Ok(())
    }

    pub(in crate::token::store) async fn find_request(
        &self,
        owner: &str,
        request_id: Uuid,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut find = redis::cmd("EVAL");
        find.arg(FIND_REQUEST).arg(1).arg(self.request_key(owner, request_id)).arg(self.operations_of(owner));
        self.read(&find).await
    }

    pub(in crate::token::store) async fn find_operation(
        &self,
        owner: &str,
        operation_id: Uuid,
    ) -> Result<Option<Vec<u8>>, Error> {
        self.read(redis::cmd("GET").arg(self.operation_key(owner, operation_id))).await
    }

    pub(in crate::token::store) async fn list_operations(
        &self,
        owner: &str,
        before: Option<Uuid>,
        most: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
        let mut list = redis::cmd("EVAL");
        list.arg(LIST).arg(1).arg(self.list_key(owner)).arg(self.operations_of(owner)).arg(from).arg(most);
        self.read(&list).await
    }

    /// Asks for what may be asked twice: a connection that was cut while nobody used it shows at the next use.
    async fn read<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, Error> {
        match self.0.ask(command).await? {
            Err(RedisFault::Connection(_)) => {
                let again = self.0.ask(command).await?;
                self.answer(again, "be read").await
            }
            answer => self.answer(answer, "be read").await,
        }
    }

    async fn answer<T>(&self, answer: Result<T, RedisFault>, action: &'static str) -> Result<T, Error> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(fault) => {
                // As in `load`: the next one begins anew.
                self.0.disconnect().await;
                let source = Box::new(fault);
                Err(Error::Unavailable { store: self.operations_place(), action, source })
            }
        }
    }

    fn operations_unusable(&self) -> Error {
        let problem = "a key of operations holds something else".to_owned();
        Error::UnusableKey { key: format!("{}:request:…", self.0.settings.key), store: self.0.name.clone(), problem }
    }

    fn operations_place(&self) -> String {
        format!("keys \"{}:operation:…\" {}", self.0.settings.key, self.0.name)
    }

    fn request_key(&self, owner: &str, request_id: Uuid) -> String {
        format!("{}:request:{owner}:{request_id}", self.0.settings.key)
    }

    fn operation_key(&self, owner: &str, operation_id: Uuid) -> String {
        format!("{}{operation_id}", self.operations_of(owner))
    }

    fn operations_of(&self, owner: &str) -> String {
        format!("{}:operation:{owner}:", self.0.settings.key)
    }

    fn list_key(&self, owner: &str) -> String {
        format!("{}:operations:{owner}", self.0.settings.key)
    }
}

/// The smallest id of an operation that is still remembered; an hour longer, for clocks that differ.
fn oldest(remembered_ms: u64) -> Uuid {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(now.saturating_sub(remembered_ms + 3_600_000), &[0; 10]).into_uuid()
}
