//! What a search need not read: row groups whose statistics or bloom filters exclude every match.

use std::{fs::File, net::IpAddr};

use garrison_flow::Filter;
use ipnet::IpNet;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder, bloom_filter::Sbbf, data_type::AsBytes, errors::ParquetError,
    file::metadata::RowGroupMetaData,
};

/// An address as the flow schema stores it: IPv4 mapped into IPv6.
fn bytes_of(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Looks at one row group.
struct Group<'a> {
    builder: &'a ParquetRecordBatchReaderBuilder<File>,
    number: usize,
    metadata: &'a RowGroupMetaData,
}

impl Group<'_> {
    fn column(&self, name: &str) -> Option<usize> {
        self.metadata
            .columns()
            .iter()
            .position(|column| column.column_path().string() == name)
    }

    /// Smallest and largest value, as stored. `None` when unknown.
    fn range(&self, name: &str) -> Option<(&[u8], &[u8])> {
        let statistics = self.metadata.column(self.column(name)?).statistics()?;
        Some((statistics.min_bytes_opt()?, statistics.max_bytes_opt()?))
    }

    fn integers(&self, name: &str) -> Option<(i64, i64)> {
        let (min, max) = self.range(name)?;
        Some((integer(min)?, integer(max)?))
    }

    fn bloom(&self, name: &str) -> Result<Option<Sbbf>, ParquetError> {
        match self.column(name) {
            Some(column) => self.builder.get_row_group_column_bloom_filter(self.number, column),
            None => Ok(None),
        }
    }

    /// Whether any of the values may be in the column.
    fn has_any<T: AsBytes + ?Sized>(&self, name: &str, values: &[&T]) -> Result<bool, ParquetError> {
        Ok(self
            .bloom(name)?
            .is_none_or(|bloom| values.iter().any(|value| bloom.check(*value))))
    }

    /// Whether an address of any of the networks may be in the column.
    fn has_network(&self, name: &str, networks: &[IpNet]) -> Result<bool, ParquetError> {
        let range = self.range(name);
        let mut possible = networks.iter().filter(|net| {
            let (first, last) = (bytes_of(net.network()), bytes_of(net.broadcast()));
            range.is_none_or(|(min, max)| first.as_slice() <= max && last.as_slice() >= min)
        });
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let Some(first) = possible.next() else { return Ok(false) };
        let rest: Vec<_> = std::iter::once(first).chain(possible).collect();
        if !rest.iter().all(|net| single(net)) {
            return Ok(true);
        }
        let Some(bloom) = self.bloom(name)? else {
            return Ok(true);
        };
        Ok(rest.iter().any(|net| bloom.check(&bytes_of(net.addr())[..])))
    }

    fn has_number(&self, name: &str, values: &[i32]) -> Result<bool, ParquetError> {
        if let Some((min, max)) = self.integers(name)
            && !values.iter().any(|value| (min..=max).contains(&i64::from(*value)))
        {
            return Ok(false);
        }
        self.has_any(name, &values.iter().collect::<Vec<_>>())
    }
}

/// Integers of statistics are little-endian, four or eight bytes.
fn integer(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        4 => Some(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        8 => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Whether a row of the row group may match those parts of the filter that are the same in every record of a flow,
/// and its times.
pub(crate) fn may_match(
    builder: &ParquetRecordBatchReaderBuilder<File>,
    number: usize,
    filter: &Filter,
) -> Result<bool, ParquetError> {
    let group = Group {
        builder,
        number,
        metadata: builder.metadata().row_group(number),
    };
    if let (Some(since), Some((_, latest))) = (filter.since, group.integers("last_seen"))
        && latest < since
    {
        return Ok(false);
    }
    if let (Some(until), Some((earliest, _))) = (filter.until, group.integers("first_seen"))
        && earliest >= until
    {
        return Ok(false);
    }
    if let Some((min, max)) = group.integers("protocol")
        && !filter.protocols.is_empty()
        && !filter
            .protocols
            .iter()
            .any(|protocol| (min..=max).contains(&i64::from(*protocol)))
    {
        return Ok(false);
    }
    if !filter.flow_ids.is_empty() {
        let ids: Vec<&[u8]> = filter.flow_ids.iter().map(<[u8; 16]>::as_slice).collect();
        if !group.has_any("flow_id", &ids)? {
            return Ok(false);
        }
    }
    if !filter.community_ids.is_empty() {
        let ids: Vec<&str> = filter.community_ids.iter().map(String::as_str).collect();
        if !group.has_any("community_id", &ids)? {
            return Ok(false);
        }
    }
    let either = |networks: &[IpNet], columns: &[&str]| -> Result<bool, ParquetError> {
        for column in columns {
            if group.has_network(column, networks)? {
                return Ok(true);
            }
        }
        Ok(networks.is_empty())
    };
    if !either(&filter.hosts, &["src_ip", "dst_ip"])?
        || !either(&filter.src_hosts, &["src_ip"])?
        || !either(&filter.dst_hosts, &["dst_ip"])?
    {
        return Ok(false);
    }
    if !filter.ports.is_empty() {
        let ports: Vec<i32> = filter.ports.iter().map(|port| i32::from(*port)).collect();
        if !group.has_number("src_port", &ports)? && !group.has_number("dst_port", &ports)? {
            return Ok(false);
        }
    }
    Ok(true)
}
