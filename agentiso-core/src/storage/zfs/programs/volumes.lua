-- Asking for a user property is cheap. For any other one, and for a volume's snapshots, the kernel opens the dataset,
-- which takes ten times as long: hence the sizes and the order in our own property.

local function snapshots(volume)
  local found = {}
  for name in zfs.list.snapshots(volume) do
    local is = own(name, args.is)
    if is then
      local clones = {}
      for clone in zfs.list.clones(name) do
        clones[clone] = true
      end
      found[name] = { is = is, removed = own(name, args.removed), clones = clones }
    else
      found[name] = { clones = {} }
    end
  end
  return found
end

local function describe(name)
  local is = own(name, args.is)
  if is then
    return {
      is = is,
      removed = own(name, args.removed),
      pending = own(name, args.pending),
      snapshots = args.snapshots and snapshots(name) or {},
    }
  end
end

